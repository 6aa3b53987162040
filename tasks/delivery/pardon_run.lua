-- A run that its worker ends on purpose is no death, and no item's fault. A first run is on record only from now on.
local record = KEYS[1]
local ttl = ARGV[1]
if redis.call('HSETNX', record, 'runs', 1) == 1 then redis.call('EXPIRE', record, ttl) end
redis.call('HINCRBY', record, 'pardons', 1)
local current = redis.call('HGET', record, 'current')
if current then redis.call('HINCRBY', record, 'start:' .. current, -1) end
redis.call('HDEL', record, 'current')
