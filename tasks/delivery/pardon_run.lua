-- A run that its worker ends on purpose, or that goes on without its message, is no death, and no item's fault; each
-- delivery is pardoned once, whoever says so first. A first run is on record only from now on.
local record = KEYS[1]
local ttl, delivery = ARGV[1], ARGV[2]
if delivery ~= '' and redis.call('HSETNX', record, 'pardoned:' .. delivery, 1) == 0 then return end
if redis.call('HSETNX', record, 'runs', 1) == 1 then redis.call('EXPIRE', record, ttl) end
redis.call('HINCRBY', record, 'pardons', 1)
local holder = redis.call('HGET', record, 'holder') or ''
if delivery ~= '' and holder ~= '' and holder ~= delivery then return end  -- Another run of it is under way by now.
local current = redis.call('HGET', record, 'current')
if current then redis.call('HINCRBY', record, 'start:' .. current, -1) end
redis.call('HDEL', record, 'current')
