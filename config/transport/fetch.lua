-- Takes the oldest messages of the most urgent lists, and records them in the same instant: no crash comes in between.
-- A script that has begun to write is not stopped by maxmemory, so it is never half done (Redis 6.2 and 7).
-- KEYS: the record, its index, a list of signs for each queue, then the lists: for each priority one of each queue.
-- ARGV: number of queues, their names as JSON, whether a sign was taken already, the number of the list that probably
-- has the next message or 0, and a delivery tag for each message that may be taken.
-- {0 or 1: more messages, {{list's number, message}, ...}}: who has taken the last one can wait for a sign.
local record, index = KEYS[1], KEYS[2]
local queues = tonumber(ARGV[1])
local is_sign_taken, guess = tonumber(ARGV[queues + 2]) == 1, tonumber(ARGV[queues + 3])
local tags, most = queues + 3, #ARGV - queues - 3
local lists = queues + 2
local taken = {}
local now

-- The first list with a message, from list number low on, by halving: of ten priorities of seven queues most are empty.
local function first(low)
  local high = #KEYS
  if redis.call('EXISTS', unpack(KEYS, low)) == 0 then return high + 1 end
  while low < high do
    local middle = math.floor((low + high) / 2)
    if redis.call('EXISTS', unpack(KEYS, low, middle)) > 0 then high = middle else low = middle + 1 end
  end
  return low
end

local list = lists + guess  -- A guess saves the search where no list before it has a message.
if guess == 0 or guess > 1 and redis.call('EXISTS', unpack(KEYS, lists + 1, list - 1)) > 0 then list = first(lists + 1) end
while list <= #KEYS do
  local found = redis.call('RPOP', KEYS[list], most - #taken)
  if found then
    if not now then
      local time = redis.call('TIME')  -- The clocks of workers may differ; leases have this one.
      now = string.format('%d.%06d', time[1], time[2])
    end
    local queue, records, times = (list - lists - 1) % queues + 1, {}, {}
    for number, raw in ipairs(found) do
      local tag = ARGV[tags + 1 + #taken]
      records[2 * number - 1], records[2 * number] = tag, '[' .. raw .. ',"",' .. ARGV[1 + queue] .. ']'
      times[2 * number - 1], times[2 * number] = now, tag
      taken[#taken + 1] = {list - lists, raw}
    end
    redis.call('HSET', record, unpack(records))
    redis.call('ZADD', index, unpack(times))
    local signs = #found - (is_sign_taken and 1 or 0)
    is_sign_taken = false
    if signs > 0 then redis.call('RPOP', KEYS[2 + queue], signs) end
  end
  if #taken == most then return {redis.call('EXISTS', unpack(KEYS, list)), taken} end
  if list == #KEYS then break end
  list = first(list + 1)
end
redis.call('DEL', unpack(KEYS, 3, 2 + queues))
return {0, taken}
