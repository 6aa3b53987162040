-- Notes that a Beat has just sent a task, in Redis's time, and forgets the Beats that have sent none for long.
local ticks = KEYS[1]
local beat, kept = ARGV[1], tonumber(ARGV[2])
local now = tonumber(redis.call('TIME')[1])
redis.call('ZADD', ticks, now, beat)
redis.call('ZREMRANGEBYSCORE', ticks, '-inf', now - kept)
redis.call('EXPIRE', ticks, kept)
