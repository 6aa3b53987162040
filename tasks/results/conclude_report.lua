-- Stores and publishes the result of an envelope, acknowledges its message and drops the records of its runs, in one
-- step. -1, and nothing at all, where the message went back to its queue: another run has it, and decides.
-- ARGV: the delivery, '' for none; the result, '' for none; its seconds to live, 0 for ever; whether to acknowledge.
-- Then the id of a call with a unique key, '' for none, and how many ms it keeps that: the key is given back.
-- KEYS from the sixth on: the records that end with the envelope.
local returned, result, unacked, index, unique = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local delivery, record, ttl, settles = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local call, keeps = ARGV[5], tonumber(ARGV[6])
if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return -1 end
if call ~= '' then give_key_back(unique, call, keeps) end  -- First: whoever has the outcome finds the key free.
if record ~= '' then
  redis.call('SET', result, record)
  if ttl > 0 then redis.call('EXPIRE', result, ttl) end
  redis.call('PUBLISH', result, record)
end
if settles then
  redis.call('HDEL', unacked, delivery)
  redis.call('ZREM', index, delivery)
end
redis.call('DEL', unpack(KEYS, 6))
return 1
