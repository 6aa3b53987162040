-- The messages whose leases have ended by this server's clock, the newest first: each goes to the head of its queue.
-- KEYS: the index, its record. ARGV: how long a lease lasts, in seconds, and how many messages at most.
-- {when the latest of these leases was renewed at most, tag, record or false, ...}
local index, record = unpack(KEYS)
local time = redis.call('TIME')
local latest = string.format('%.6f', time[1] + time[2] / 1000000 - ARGV[1])
local found = {latest}
for _, tag in ipairs(redis.call('ZRANGE', index, latest, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, ARGV[2])) do
  found[#found + 1] = tag
  found[#found + 1] = redis.call('HGET', record, tag)
end
return found
