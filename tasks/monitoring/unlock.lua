-- Ends a lock, unless it has expired and is another process's by now.
local lock, token = KEYS[1], ARGV[1]
if redis.call('GET', lock) ~= token then return 0 end
return redis.call('DEL', lock)
