-- Renews the leases of messages that are held, by the time of this server; those settled meanwhile stay settled.
local now = redis.call('TIME')
local seconds = string.format('%d.%06d', now[1], now[2])
for _, tag in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 'XX', seconds, tag) end
