-- The messages whose leases have ended by this server's clock, the newest first: each goes to the head of its queue.
-- KEYS: the index, its record. ARGV: how long a lease lasts, in seconds; how many messages at most; and how many bytes
-- of them, but for the last one.
-- {when the latest of these leases was renewed at most, 1 where there may be more, tag, record or false, ...}
local index, record = unpack(KEYS)
local lasts, most, limit = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local latest = string.format('%.6f', time[1] + time[2] / 1000000 - lasts)
local tags = redis.call('ZRANGE', index, latest, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, most)
local found, bytes = {latest, #tags == most and 1 or 0}, 0
for _, tag in ipairs(tags) do
  if bytes >= limit then
    found[2] = 1
    break
  end
  local message = redis.call('HGET', record, tag)
  found[#found + 1], found[#found + 2] = tag, message
  bytes = bytes + #(message or '')
end
return found
