-- Messages whose time has not come: a set of their ids by time, by this server's clock, and a hash of what they are.
-- KEYS: times, messages (queue, list, its wake-ups, message: a line each), how many of each queue, who moves.
-- ARGV: operation, then
--   put: ms that a wake-up stays, then six for each message: time, id, queue, list, wake-ups, message → how many wait here; the
--        others went on their lists, as no worker has moved any for a day
--   move: holder, ms of its lease, most, ms that a wake-up stays → {how many have gone to their lists, seconds until the next is due or ''};
--         {-1, ''} where somebody else moves
--   remove: ids → those of them that were sent for the first time, each with its message; they are gone
--   mentioning: cursor, text, count → {next cursor, id, message …}
local times, messages, counts, mover = unpack(KEYS)
local operation = ARGV[1]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local DAY = 86400

local function parts(text)
  return string.match(text, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
end

local function drop(id)
  local text = redis.call('HGET', messages, id)
  redis.call('ZREM', times, id)
  if not text then return nil end
  redis.call('HDEL', messages, id)
  local queue = parts(text)
  if redis.call('HINCRBY', counts, queue, -1) <= 0 then redis.call('HDEL', counts, queue) end
  return text
end

local operations = {}

function operations.put()
  local lasts, kept = ARGV[2], 0
  local is_moved = redis.call('EXISTS', mover .. ':seen') == 1
  for at = 3, #ARGV, 6 do
    local due, id, queue, list, wakeups, message = unpack(ARGV, at, at + 5)
    if is_moved then
      local text = table.concat({queue, list, wakeups, message}, '\n')
      if redis.call('HSET', messages, id, text) == 1 then redis.call('HINCRBY', counts, queue, 1) end
      redis.call('ZADD', times, due, id)
      kept = kept + 1
    else
      redis.call('LPUSH', list, message)
      redis.call('LPUSH', wakeups, 1)
      redis.call('PEXPIRE', wakeups, lasts)
    end
  end
  return kept
end

function operations.move()
  local holder, lease, most, lasts = unpack(ARGV, 2)
  local other = redis.call('GET', mover)
  if other and other ~= holder then return {-1, ''} end
  redis.call('SET', mover, holder, 'PX', lease)  -- First: a full Redis refuses it, and nothing has been moved.
  redis.call('SET', mover .. ':seen', 1, 'EX', DAY)
  local ids = redis.call('ZRANGEBYSCORE', times, '-inf', now, 'LIMIT', 0, most)
  local woken = {}
  for _, id in ipairs(ids) do
    local text = drop(id)
    if text then
      local _, list, wakeups, message = parts(text)
      redis.call('LPUSH', list, message)
      woken[wakeups] = (woken[wakeups] or 0) + 1
    end
  end
  for wakeups, number in pairs(woken) do
    for _ = 1, number do redis.call('LPUSH', wakeups, 1) end
    redis.call('PEXPIRE', wakeups, lasts)
  end
  local first = redis.call('ZRANGE', times, 0, 0, 'WITHSCORES')
  return {#ids, first[2] and string.format('%.3f', math.max(0, first[2] - now)) or ''}
end

function operations.remove()
  local removed = {}
  for at = 2, #ARGV do
    local text = redis.call('HGET', messages, ARGV[at])
    -- One that runs again has the outcomes of its first run on board.
    if text and string.find(text, '"retries": ?0[,}]') then
      local _, _, _, message = parts(drop(ARGV[at]))
      removed[#removed + 1] = ARGV[at]
      removed[#removed + 1] = message
    end
  end
  return removed
end

function operations.mentioning()
  local cursor, page = unpack(redis.call('HSCAN', messages, ARGV[2], 'COUNT', ARGV[4]))
  local found = {cursor}
  for at = 1, #page, 2 do
    if string.find(page[at + 1], ARGV[3], 1, true) then
      local _, _, _, message = parts(page[at + 1])
      found[#found + 1] = page[at]
      found[#found + 1] = message
    end
  end
  return found
end

return operations[operation]()
