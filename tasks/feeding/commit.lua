-- Makes a spooled batch the deployment's. KEYS: record, name (or the record once more), all, open, further keys of it.
-- ARGV: id, total, digest of the input, seconds that it is kept, when it may begin (0: at once), and the id of the batch
-- whose name it takes over ('': it has the name already).
-- Returns 0 where the batch is no longer this caller's.
local record, held_by, all, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, total, digest, ttl, due = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local before = ARGV[6] ~= '' and ARGV[6] or id

if redis.call('EXISTS', record) == 0 or (held_by ~= record and redis.call('GET', held_by) ~= before) then
  return 0
end
if before ~= id then redis.call('SET', held_by, id) end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('HSET', record, 'total', total, 'input', digest, 'created', now)
redis.call('ZADD', all, now, id)
local has_ended = tonumber(redis.call('HGET', record, 'done') or 0) >= total
if has_ended then redis.call('HSET', record, 'ended', now) end
if not has_ended or redis.call('HEXISTS', record, 'then') == 1 then redis.call('ZADD', open, math.max(now, due), id) end
if due > now then
  redis.call('HSET', record, 'due', due)
  ttl = ttl + math.ceil(due - now)
end
for at, key in ipairs(KEYS) do
  -- The lists of all batches stay as long as the batch that waits longest.
  if (key ~= all and key ~= open) or redis.call('TTL', key) < ttl then redis.call('EXPIRE', key, ttl) end
end
return 1
