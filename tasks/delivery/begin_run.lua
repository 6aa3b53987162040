-- Counts one more run of an envelope that has died less than most_deaths times; for any other, {0}, uncounted.
-- Else {the run's number, the cancel flag of its batch, that of the envelope}; a flag that nobody has raised is ''.
local record, batch_flag, own_flag = unpack(KEYS)
local ttl, most_deaths = ARGV[1], tonumber(ARGV[2])
local runs, pardons = unpack(redis.call('HMGET', record, 'runs', 'pardons'))
if (tonumber(runs) or 0) - (tonumber(pardons) or 0) >= most_deaths then return {0} end
local run = redis.call('HINCRBY', record, 'runs', 1)
redis.call('EXPIRE', record, ttl)
local flags = redis.call('MGET', batch_flag, own_flag)
return {run, flags[1] or '', flags[2] or ''}
