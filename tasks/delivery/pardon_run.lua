-- A run that its worker ends on purpose is no death, and no item's fault. One that has ended meanwhile has no record.
local record = KEYS[1]
if redis.call('EXISTS', record) == 0 then return 0 end
redis.call('HINCRBY', record, 'pardons', 1)
local current = redis.call('HGET', record, 'current')
if current then redis.call('HINCRBY', record, 'start:' .. current, -1) end
redis.call('HDEL', record, 'current')
return 1
