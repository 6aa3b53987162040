-- Has the failed items of a batch that has ended run again, as its next generation.
-- KEYS: record, done, failed, open, the flag of a cancelled batch. ARGV: id. Returns how many; -1 where it is gone, -2 while it runs.
local record, done, failed, open, flag = unpack(KEYS)
local id = ARGV[1]

if redis.call('HEXISTS', record, 'total') == 0 then return -1 end
if redis.call('HEXISTS', record, 'ended') == 0 then return -2 end
local count = tonumber(redis.call('HGET', record, 'failed') or 0)
if count == 0 and redis.call('HEXISTS', record, 'fatal') == 0 then return 0 end
local time = redis.call('TIME')
if count > 0 then
  redis.call('BITOP', 'XOR', done, done, failed)  -- Whatever has failed is done.
  redis.call('UNLINK', failed)
  redis.call('HINCRBY', record, 'done', -count)
  redis.call('HSET', record, 'failed', 0)
end
redis.call('UNLINK', flag)
redis.call('HINCRBY', record, 'generation', 1)
redis.call('HDEL', record, 'ended', 'paused', 'fatal')
redis.call('ZADD', open, time[1] + time[2] / 1000000, id)
return count
