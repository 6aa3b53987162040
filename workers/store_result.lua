-- Stores a task's result and publishes it. As in Celery, which asks first and stores then, nothing takes the place of a
-- success; success is how the record of one begins. A ttl of 0 is none.
-- Of a run with a delivery, -1 and nothing else where its message has gone back: the result is another run's to store.
-- settles: nothing is left to be done, so its message is acknowledged in the same instant, and what follows from the run
-- is sent, as in conclude.lua. In between a worker could die, and the run after it give another answer.
-- call: what has a unique key (transport/unique.lua), which is given back too; it stays for as many ms as keeps says. A
-- call without one is ''.
-- replies: the channel of the thread that has sent the task, which is told too (tasks/results/replies.py); '' for none.
-- KEYS from the sixth, ARGV from the ninth on: as push_messages.
local key, returned, unacked, index, unique = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local record, ttl, success, delivery, settles = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4], ARGV[5] == '1'
local call, keeps, replies = ARGV[6], tonumber(ARGV[7]), ARGV[8]
local LARGE = 65536  -- Bytes of a record that nobody is sent who has not asked for it.
local old, has_gone_back = unpack(redis.call('MGET', key, returned))
if delivery ~= '' and has_gone_back then return -1 end

local function settle()
  if call ~= '' then give_key_back(unique, call, keeps) end
  if not settles then return end
  redis.call('ZREM', index, delivery)
  if redis.call('HDEL', unacked, delivery) == 1 then push_messages(6, 9) end
end

if old and string.sub(old, 1, #success) == success then
  settle()
  return 0
end
-- First: a full Redis refuses it, and lets a script go on that has begun to write.
if ttl > 0 then redis.call('SET', key, record, 'EX', ttl) else redis.call('SET', key, record) end
settle()
redis.call('PUBLISH', key, record)
if replies ~= '' then redis.call('PUBLISH', replies, #record > LARGE and '>' .. key or record) end
return 1
