-- Counts one more run of an envelope that has died less than most_deaths times; for any other, {0, 0}, uncounted.
-- Else {the run's number, whether its batch was cancelled}.
local record, cancel_flag = unpack(KEYS)
local ttl, most_deaths = ARGV[1], tonumber(ARGV[2])
local runs, pardons = unpack(redis.call('HMGET', record, 'runs', 'pardons'))
if (tonumber(runs) or 0) - (tonumber(pardons) or 0) >= most_deaths then return {0, 0} end
local run = redis.call('HINCRBY', record, 'runs', 1)
redis.call('EXPIRE', record, ttl)
return {run, redis.call('EXISTS', cancel_flag)}
