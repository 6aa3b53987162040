-- Puts a batch of messages on their queues and wakes readers, unless that was done under this token before: who does not
-- know whether it was, because the connection broke, sends it again.
-- KEYS: the token, a list for each message, in their order, then the list of signs of each queue.
-- ARGV: how long the token and the signs last (ms each), number of messages, the messages, then for each queue how many
-- of them it has.
local most = 100  -- Signs to one command.
if not redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[1]) then return 0 end
local messages = tonumber(ARGV[3])
for i = 1, messages do redis.call('LPUSH', KEYS[1 + i], ARGV[3 + i]) end
for i = messages + 2, #KEYS do
  for _ = 1, math.min(most, tonumber(ARGV[i + 2])) do redis.call('LPUSH', KEYS[i], 1) end
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return messages
