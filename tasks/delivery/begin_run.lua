-- Counts one more run of an envelope that has died less than most_deaths times; for any other, 0, uncounted.
-- Else the run's number. earlier: how many runs there were before the first that is on record.
-- A delivery is counted once: whoever lost the reply asks again.
local record = KEYS[1]
local ttl, most_deaths, earlier, delivery = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local runs, pardons, known = unpack(redis.call('HMGET', record, 'runs', 'pardons', 'begun:' .. delivery))
if known and delivery ~= '' then return tonumber(known) end
if not runs then runs = earlier end
if tonumber(runs) - (tonumber(pardons) or 0) >= most_deaths then return 0 end
redis.call('HSET', record, 'runs', runs + 1)
if delivery ~= '' then redis.call('HSET', record, 'begun:' .. delivery, runs + 1) end
redis.call('EXPIRE', record, ttl)
return runs + 1
