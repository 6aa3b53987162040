-- Stores a task's result and publishes it. As in Celery, which asks first and stores then, nothing takes the place of a
-- success; success is how the record of one begins. A ttl of 0 is none.
local key = KEYS[1]
local record, ttl, success = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local old = redis.call('GET', key)
if old and string.sub(old, 1, #success) == success then return 0 end
redis.call('SET', key, record)
if ttl > 0 then redis.call('EXPIRE', key, ttl) end
redis.call('PUBLISH', key, record)
return 1
