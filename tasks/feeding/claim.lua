-- Begins the record of a batch, under a name where it has one; says who has the name otherwise.
-- KEYS: the record, the name (or the record once more).
-- ARGV: id, name, how all records begin, seconds the spool lives, seconds of silence that end a caller, field, value …
-- Returns {id of the batch that has the name, 'there' | 'spooling' | 'begun'}.
local record, held_by = KEYS[1], KEYS[2]
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
    redis.call('UNLINK', prefix .. other, prefix .. other .. ':items', prefix .. other .. ':pages')
  end
  redis.call('SET', held_by, id, 'EX', ttl)
end
redis.call('HSET', record, 'name', name, 'spooled_at', now, 'created', now, 'generation', 0, unpack(ARGV, 6))
redis.call('EXPIRE', record, ttl)
return {id, 'begun'}
