-- Puts a name at the end of the list of cancelled ones. Entries are numbered, so that readers ask for what is new.
local list = KEYS[1]
local name, most, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local newest = redis.call('ZRANGE', list, -1, -1, 'WITHSCORES')[2]
redis.call('ZADD', list, (tonumber(newest) or 0) + 1, name)
redis.call('ZREMRANGEBYRANK', list, 0, -most - 1)
redis.call('EXPIRE', list, ttl)
