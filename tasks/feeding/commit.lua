-- Makes a spooled batch the deployment's. KEYS: record, name (or the record once more), all, open, further keys of it.
-- ARGV: id, total, digest of the input, seconds. Returns 0 where the batch is no longer this caller's.
local record, held_by, all, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, total, digest, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

if redis.call('EXISTS', record) == 0 or (held_by ~= record and redis.call('GET', held_by) ~= id) then
  return 0
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('HSET', record, 'total', total, 'input', digest, 'created', now)
redis.call('ZADD', all, now, id)
local has_ended = tonumber(redis.call('HGET', record, 'done') or 0) >= total
if has_ended then redis.call('HSET', record, 'ended', now) end
if not has_ended or redis.call('HEXISTS', record, 'then') == 1 then redis.call('ZADD', open, now, id) end
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return 1
