-- Stores and publishes the result of an envelope, acknowledges its message and drops the records of its runs, in one
-- step. -1, and nothing at all, where the message went back to its queue: another run has it, and decides.
-- ARGV: the delivery, '' for none; the result, '' for none; its seconds to live, 0 for ever; whether to acknowledge.
-- Then the id of a call with a unique key, '' for none, and how many ms it keeps that: the key is given back.
-- Then what is added to the figures of a callable (function_stats.py): its name, items, or 0 where they are counted
-- elsewhere, their seconds, Redis's time, and for how long figures are kept.
-- KEYS from the eighth on: the records that end with the envelope.
local returned, result, unacked, index, unique, figures, names = unpack(KEYS, 1, 7)
local delivery, record, ttl, settles = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local call, keeps = ARGV[5], tonumber(ARGV[6])
local name, items, busy, now, kept = ARGV[7], tonumber(ARGV[8]), ARGV[9], ARGV[10], ARGV[11]
if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end
if call ~= '' then give_key_back(unique, call, keeps) end  -- First: whoever has the outcome finds the key free, and it counted.
if items > 0 then
  redis.call('HINCRBY', figures, 'items', items)
  redis.call('HINCRBYFLOAT', figures, 'seconds', busy)
  redis.call('HSET', figures, 'last', now)
  redis.call('EXPIRE', figures, kept)
  redis.call('SADD', names, name)
end
if record ~= '' then
  redis.call('SET', result, record)
  if ttl > 0 then redis.call('EXPIRE', result, ttl) end
  redis.call('PUBLISH', result, record)
end
if settles then
  redis.call('HDEL', unacked, delivery)
  redis.call('ZREM', index, delivery)
end
redis.call('DEL', unpack(KEYS, 8))
return 1
