-- Puts messages on their lists and wakes readers. Stands in front of the scripts that do so.
-- KEYS from first_key on: a list for each message, in their order, then the list of signs of each queue.
-- ARGV from first_argument on: how long signs last, in ms, number of messages, the messages, then for each queue how
-- many of them it has.
local function push_messages(first_key, first_argument)
  local lasts, messages = ARGV[first_argument], tonumber(ARGV[first_argument + 1])
  local texts = first_argument + 2
  for i = 0, messages - 1 do redis.call('LPUSH', KEYS[first_key + i], ARGV[texts + i]) end
  for i = messages, #KEYS - first_key do
    for _ = 1, tonumber(ARGV[texts + i]) do redis.call('LPUSH', KEYS[first_key + i], 1) end
    redis.call('PEXPIRE', KEYS[first_key + i], lasts)
  end
end

