-- Puts a batch of messages on their queues and wakes readers, unless that was done under this token before: who does not
-- know whether it was, because the connection broke, sends it again.
-- KEYS: the key of the token, a list for each message, in their order, then the list of signs of each queue.
-- ARGV: how long the token is remembered, how long signs last (both in ms), number of messages, the messages, then for
-- each queue how many of them it has.
local token, remembered, lasts, messages = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])

if not redis.call('SET', token, 1, 'NX', 'PX', remembered) then return end
for i = 1, messages do redis.call('LPUSH', KEYS[1 + i], ARGV[3 + i]) end
for i = messages + 2, #KEYS do
  for _ = 1, tonumber(ARGV[i + 2]) do redis.call('LPUSH', KEYS[i], 1) end
  redis.call('PEXPIRE', KEYS[i], lasts)
end
