-- Raises the cancel flag KEYS[1] to ARGV[1] for ARGV[2] seconds; one that says more already stays as it is.
local flag = KEYS[1]
local wanted, ttl = ARGV[1], ARGV[2]
local rank = {some = 1, running = 3}
local present = redis.call('GET', flag)
if present and (rank[present] or 2) > (rank[wanted] or 2) then wanted = present end
redis.call('SET', flag, wanted, 'EX', ttl)
return wanted
