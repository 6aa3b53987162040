-- Moves messages that were sent before some time from a priority step to the place that is taken next, the oldest first.
-- They may stand anywhere: batches share a step, and whoever comes later may be next (config/transport/fair_order.lua).
-- KEYS: the step and the list that is taken from first. ARGV: the time, how many to look at from the next one on, how
-- many to move at most, how the time of sending stands in a message. How many were moved.
local step, front = KEYS[1], KEYS[2]
local before, looks, most, mark = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local old = {}
for index = -1, -looks, -1 do
  local message = redis.call('LINDEX', step, index)
  if not message then break end
  local _, ends = string.find(message, mark, 1, true)
  local sent_at = ends and not string.find(message, '"eta": "', 1, true) and tonumber(string.match(message, '^ ?([%d.]+)', ends + 1))
  if sent_at and sent_at < before then old[#old + 1] = {sent_at, message} end
end
table.sort(old, function(one, other) return one[1] < other[1] end)
for number = math.min(#old, most), 1, -1 do
  redis.call('LREM', step, -1, old[number][2])
  redis.call('RPUSH', front, old[number][2])
end
return math.min(#old, most)
