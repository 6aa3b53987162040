-- Takes a dead letter away, unless another has been written under its id meanwhile: a replayed message may die again
-- before its sender gets here. Ends the lock in either case.
local letters, index, lock, failed, size = unpack(KEYS)
local id, text = ARGV[1], ARGV[2]
redis.call('DEL', lock)
if redis.call('HGET', letters, id) ~= text then return 0 end
redis.call('HDEL', letters, id)
redis.call('ZREM', index, id)
if redis.call('ZREM', failed, id) == 1 then redis.call('DECRBY', size, #text) end
return 1
