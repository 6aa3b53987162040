-- Puts a batch of messages on their queues, unless that was done under this token before: who does not know whether it
-- was, because the connection broke, sends it again.
-- KEYS: the key of the token, then as push_messages. ARGV: how long the token is remembered, in ms, then likewise.
local token, remembered = KEYS[1], ARGV[1]
if redis.call('SET', token, 1, 'NX', 'PX', remembered) then push_messages(2, 2) end
