-- Begins the record of a batch, under a name where it has one; says who has the name otherwise.
-- KEYS: the record, the name (or the record once more), the plan.
-- ARGV: id, name, how all records begin, seconds the spool lives, seconds of silence that end a caller, plan, field,
-- value …
-- Returns {id of the batch that has the name, 'there' | 'spooling' | 'begun'}.
local record, held_by, plan = KEYS[1], KEYS[2], KEYS[3]
local id, name, prefix, ttl, patience = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000

if name ~= '' then
  local other = redis.call('GET', held_by)
  if other and redis.call('EXISTS', prefix .. other) == 1 then
    if redis.call('HEXISTS', prefix .. other, 'total') == 1 then
      return {other, 'there'}
    end
    if now - tonumber(redis.call('HGET', prefix .. other, 'spooled_at')) < patience then
      return {other, 'spooling'}
    end
    -- Its caller ended while it spooled: nobody was told that the batch exists.
    redis.call('UNLINK', prefix .. other)
    for _, part in ipairs({'items', 'pages', 'plan'}) do
      redis.call('UNLINK', prefix .. other .. ':' .. part)
    end
  end
  redis.call('SET', held_by, id, 'EX', ttl)
end
redis.call('HSET', record, 'name', name, 'spooled_at', now, 'created', now, 'generation', 0, unpack(ARGV, 7))
redis.call('EXPIRE', record, ttl)
redis.call('SET', plan, ARGV[6], 'EX', ttl)
return {id, 'begun'}
