-- Puts messages into a list so that their batches share what is taken from it, in proportion to their shares, from the
-- moment in which each begins (start-time fair queueing): each message has a start in virtual time, the lowest is next.
-- KEYS: the list, a hash of virtual times, and the fence of a sender that may send under a lease alone, if it is one.
-- ARGV: the token that has to be at the fence, number of batches, the virtual time up to which each has been served, then three for each message: its batch's
-- number, by how much it moves that time on, and its text.
-- The new time of each batch, or nil: the fence has another token. A start stands at the head of a text, outside of what is signed; messages without one
-- (plain tasks, what was sent by hand) stay where they are.
local list, times, fence = unpack(KEYS)
local token, count = ARGV[1], tonumber(ARGV[2])
local served = {}
for batch = 1, count do served[batch] = tonumber(ARGV[2 + batch]) end
if fence and redis.call('GET', fence) ~= token then return false end

local function start_at(index)
  local text = redis.call('LINDEX', list, index)
  return text and tonumber(string.match(text, '^{"graft_start": ([%d.]+)')), text
end

-- Virtual time is the start of the message that is taken next. It never falls, though a message may have come back from
-- a worker, and never passes the latest start, though one may have come from another list.
local now, latest = string.match(redis.call('HGET', times, list) or '0 0', '(%S+) (%S+)')
now, latest = tonumber(now), tonumber(latest)
now = math.min(math.max(now, start_at(-1) or (redis.call('EXISTS', list) == 0 and latest or now)), latest)

-- How many messages at the left end, where the last ones wait, start later than *start*.
local function later_than(start)
  local low, high = 0, redis.call('LLEN', list)
  while low < high do
    local middle = math.floor((low + high) / 2)
    local index, found = middle, nil
    while not found and index < high and index < middle + 16 do
      found = start_at(index)
      index = index + 1
    end
    if found and found > start then low = index else high = middle end
  end
  return low
end

for at = 3 + count, #ARGV, 3 do
  local batch = tonumber(ARGV[at])
  local start = math.max(served[batch], now)
  local text = string.format('{"graft_start": %.6f, ', start) .. string.sub(ARGV[at + 2], 2)
  local later = start < latest and later_than(start) or 0
  if later == 0 then
    redis.call('LPUSH', list, text)
  else
    local _, before = start_at(later - 1)
    redis.call('LINSERT', list, 'AFTER', before, text)
  end
  served[batch] = start + tonumber(ARGV[at + 1])
  latest = math.max(latest, start)
end
redis.call('HSET', times, list, string.format('%.6f %.6f', now, latest))
for batch = 1, count do served[batch] = string.format('%.6f', served[batch]) end
return served
