-- Keeps a letter; one with the same id is replaced, and keeps its place in the order of burial. 0 and nothing else where
-- the run that buries it had a delivery whose message has gone back: another run decides.
local letters, index, failed, returned = unpack(KEYS)
local id, text, at, delivery = unpack(ARGV)
if delivery ~= '' and redis.call('EXISTS', returned) == 1 then return 0 end
redis.call('HSET', letters, id, text)
redis.call('ZADD', index, 'NX', at, id)
redis.call('ZREM', failed, id)
return 1
