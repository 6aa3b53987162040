-- Stores and publishes the result of an envelope, acknowledges its message and drops the records of its runs, in one
-- step. -1, and nothing at all, where the message went back to its queue: another run has it, and decides.
-- ARGV: the delivery, '' for none; the result, '' for none; its seconds to live, 0 for ever; whether to acknowledge.
-- KEYS from the fifth on: the records that end with the envelope.
local returned, result, unacked, index = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local delivery, record, ttl, settles = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end
if record ~= '' then
  redis.call('SET', result, record)
  if ttl > 0 then redis.call('EXPIRE', result, ttl) end
  redis.call('PUBLISH', result, record)
end
if settles then
  redis.call('HDEL', unacked, delivery)
  redis.call('ZREM', index, delivery)
end
redis.call('DEL', unpack(KEYS, 5))
return 1
