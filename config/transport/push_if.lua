-- Puts a batch of messages on their queues and wakes readers, if a guard allows it.
--   once    not if that was done under this token before: who does not know whether it was, because the connection
--           broke, sends it again
--   fence   only while this token is at the fence: whoever has lost a lease sends nothing more
-- KEYS: the guard, a list for each message, in their order, then the list of signs of each queue.
-- ARGV: once or fence, how long the guard lasts (ms) or the token, how long signs last (ms), number of messages, the
-- messages, then for each queue how many of them it has. Returns how many were put; 0 where the guard refuses.
local guard, kind, value, lasts, messages = KEYS[1], ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local most = 100  -- Signs to one command.

if kind == 'fence' then
  if redis.call('GET', guard) ~= value then return 0 end
elseif not redis.call('SET', guard, 1, 'NX', 'PX', value) then
  return 0
end
for i = 1, messages do redis.call('LPUSH', KEYS[1 + i], ARGV[4 + i]) end
for i = messages + 2, #KEYS do
  for _ = 1, math.min(most, tonumber(ARGV[i + 3])) do redis.call('LPUSH', KEYS[i], 1) end
  redis.call('PEXPIRE', KEYS[i], lasts)
end
return messages
