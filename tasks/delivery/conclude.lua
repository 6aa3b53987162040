-- Settles the message of a run and sends what follows from the run, in one step. The record of the message is the token:
-- whoever removes it sends, so a second run, a late one and a second attempt send nothing more.
-- KEYS: the mark that the message went back, the record, its index, then as push_messages. ARGV: the delivery, likewise.
-- 1: done; 0: it was settled before; -1: the message went back, and another run decides.
local returned, record, index = KEYS[1], KEYS[2], KEYS[3]
local delivery = ARGV[1]
if redis.call('EXISTS', returned) == 1 then return -1 end
if redis.call('HDEL', record, delivery) == 0 then return 0 end
redis.call('ZREM', index, delivery)
push_messages(4, 2)
return 1
