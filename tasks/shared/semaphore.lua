-- Leased permits, given in the order of asking. One operation is one step; every time is Redis's own.
-- held: ticket -> end of its lease. slots: ticket -> number of its permit. waiters: ticket -> order of asking.
-- seen: waiting ticket -> when it is given up. state: the limit, when the name was last used, when it opens; for how
-- long permits are held (a moving mean), when one was last given or given back, when each of those that are out was.
local held, waiters, seen, slots, state = unpack(KEYS)
local operation, kept, in_use = ARGV[1], ARGV[2], tonumber(ARGV[3])
local limit, lease, ticket = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6

-- After a restart of Redis the holders need a moment to renew what ran out meanwhile: nothing expires until then.
local grace = lease / 3 + 1

-- Seconds: what a permit is taken to be held for at first; bounds of a wait in a queue; and for how long after that a
-- place is kept.
local unknown_hold, soonest, longest, away = 0.1, 0.01, 5, 90

local function uptime()
  return tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
end

local function sweep()
  local lapsed = redis.call('ZRANGEBYSCORE', held, '-inf', now)
  local gone = given_up(seen, now)
  if (#lapsed == 0 and #gone == 0) or uptime() < grace then return end
  for _, each in ipairs(lapsed) do
    redis.call('ZREM', held, each)
    redis.call('HDEL', slots, each)
    redis.call('HDEL', state, 'since:' .. each)
  end
  for _, each in ipairs(gone) do stop_waiting(waiters, seen, each) end
end

local function hold()
  local taken, slot = {}, 1
  for _, each in ipairs(redis.call('HVALS', slots)) do taken[tonumber(each)] = true end
  while taken[slot] do slot = slot + 1 end
  stop_waiting(waiters, seen, ticket)
  redis.call('ZADD', held, now + lease, ticket)
  redis.call('HSET', slots, ticket, slot)
  redis.call('HSET', state, 'since:' .. ticket, now, 'changed', now)
  return slot
end

-- Seconds until one asks again that has so many permits before it: half of the time until its turn may have come. To ask
-- in vain costs milliseconds, and a permit that lies idle until somebody asks costs them all.
local function wait_for(ahead)
  local known = redis.call('HMGET', state, 'mean', 'changed')
  local mean = tonumber(known[1] or unknown_hold)
  if known[2] then mean = math.max(mean, now - tonumber(known[2])) end  -- They are held for longer than that.
  return math.max(soonest, math.min(longest, mean * ahead / limit / 2))
end

local function remember()
  redis.call('HSET', state, 'limit', limit, 'used', now)
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, kept) end
end

local operations = {}

-- {permit's number, 0}, or {0, permits that others get first, seconds until then}, or {-1, the limit in use}.
-- Who has no patience waits in a queue, and is not here when its turn comes: it gets a permit whenever it finds one. To
-- keep one for another that ought to be back would be to wait for who cannot come, behind those who are refused for it.
-- Those that have waited for long ask more often. With patience, permits are given strictly in order.
function operations.acquire()
  local patience, was_used_here = tonumber(ARGV[7]), ARGV[8] == '1'
  local is_away = patience == 0
  sweep()
  local set = redis.call('HGET', state, 'limit')
  if set and tonumber(set) ~= limit then
    local idle = now - tonumber(redis.call('HGET', state, 'used'))
    if redis.call('ZCARD', held) > 0 or redis.call('ZCARD', waiters) > 0 or idle < in_use then return {-1, set} end
  end
  if not set and was_used_here and uptime() < grace then
    redis.call('HSET', state, 'opens', now + grace - uptime())
  end
  local slot = redis.call('HGET', slots, ticket)
  if slot then
    redis.call('ZADD', held, now + lease, ticket)
    return {tonumber(slot), 0}
  end
  local rank = ask(waiters, state, ticket)
  local free = limit - redis.call('ZCARD', held)
  if now < tonumber(redis.call('HGET', state, 'opens') or 0) then free = 0 end
  if (is_away and 0 or rank) < free then
    slot = hold()
    remember()
    return {slot, 0}
  end
  local ahead = math.max(1, rank - free + 1)
  local wait = wait_for(ahead)
  redis.call('ZADD', seen, now + (is_away and wait + away or patience), ticket)
  remember()
  return {0, ahead, string.format('%.6f', wait)}
end

-- A permit that Redis has lost, or has taken back without giving it to another, is this ticket's again.
function operations.renew()
  if redis.call('HEXISTS', slots, ticket) == 1 then
    redis.call('ZADD', held, now + lease, ticket)
  else
    if redis.call('EXISTS', state) == 0 then redis.call('HSET', state, 'opens', now + grace) end
    if redis.call('ZCARD', held) >= limit then return 0 end
    hold()
  end
  remember()
  return 1
end

function operations.release()
  local since = redis.call('HGET', state, 'since:' .. ticket)
  if since then
    local mean, took = tonumber(redis.call('HGET', state, 'mean')), now - tonumber(since)
    redis.call('HSET', state, 'mean', mean and 0.8 * mean + 0.2 * took or took, 'changed', now)
    redis.call('HDEL', state, 'since:' .. ticket)
  end
  redis.call('ZREM', held, ticket)
  redis.call('HDEL', slots, ticket)
  return stop_waiting(waiters, seen, ticket)
end

function operations.withdraw()
  return stop_waiting(waiters, seen, ticket)
end

function operations.available()
  return limit - redis.call('ZCOUNT', held, '(' .. now, '+inf')
end

return operations[operation]()
