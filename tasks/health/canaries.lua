-- Notes that a worker has run the canary that was sent last to a queue, and no earlier one.
local canaries = KEYS[1]
local queue, asked = ARGV[1], ARGV[2]
local text = redis.call('HGET', canaries, queue)
if not text then return 0 end
local canary = cjson.decode(text)
if string.format('%.6f', canary.asked) ~= asked then return 0 end
local time = redis.call('TIME')
canary.seconds = time[1] + time[2] / 1e6 - canary.asked
canary.is_pending = false
redis.call('HSET', canaries, queue, cjson.encode(canary))
return 1
