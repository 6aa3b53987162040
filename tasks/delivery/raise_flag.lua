-- Raises a cancel flag for ttl seconds; one that says more already stays as it is, and one that lasts longer does. Its
-- name goes to the end of the list of cancelled ones, whose entries are numbered, so that workers ask for what is new.
local flag, list = unpack(KEYS)
local wanted, ttl, name, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local rank = {some = 1, running = 3}
local present = redis.call('GET', flag)
if present and (rank[present] or 2) > (rank[wanted] or 2) then wanted = present end
redis.call('SET', flag, wanted, 'EX', math.max(ttl, redis.call('TTL', flag)))
local newest = redis.call('ZRANGE', list, -1, -1, 'WITHSCORES')[2]
redis.call('ZADD', list, (tonumber(newest) or 0) + 1, name)
redis.call('ZREMRANGEBYRANK', list, 0, -most - 1)
redis.call('EXPIRE', list, math.max(ttl, redis.call('TTL', list)))
return wanted
