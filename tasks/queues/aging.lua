-- Moves the oldest message of a priority step to the place that is taken next, unless a worker took it meanwhile.
local step, front = unpack(KEYS)
local message = ARGV[1]
if redis.call('LINDEX', step, -1) ~= message then return 0 end
redis.call('RPOP', step)
redis.call('RPUSH', front, message)
return 1
