-- Counts one more run of an envelope that has died less than most_deaths times; for any other, 0, uncounted.
-- Else the run's number. earlier: how many runs there were before the first that is on record.
local record = KEYS[1]
local ttl, most_deaths, earlier = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local runs, pardons = unpack(redis.call('HMGET', record, 'runs', 'pardons'))
if not runs then runs = earlier end
if tonumber(runs) - (tonumber(pardons) or 0) >= most_deaths then return 0 end
redis.call('HSET', record, 'runs', runs + 1)
redis.call('EXPIRE', record, ttl)
return runs + 1
