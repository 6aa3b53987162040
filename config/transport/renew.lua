-- Renews the leases of messages that are held, by the time of this server; those settled meanwhile stay settled.
-- Returns the tags of those that went back to their queues meanwhile: another worker has them, or will.
local index, returned = unpack(KEYS)
local now = redis.call('TIME')
local seconds, gone = string.format('%d.%06d', now[1], now[2]), {}
for _, tag in ipairs(ARGV) do
  -- Every time differs from the one before, so what does not change is not there.
  if redis.call('ZADD', index, 'XX', 'CH', seconds, tag) == 0 and redis.call('EXISTS', returned .. tag) == 1 then
    gone[#gone + 1] = tag
  end
end
return gone
