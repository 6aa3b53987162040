-- At most count admissions in any window. admitted: the times of the last ones, the oldest first.
-- waiters: ticket -> order of asking. seen: waiting ticket -> when it is given up. state: the rule, when it was last used.
local admitted, waiters, seen, state = unpack(KEYS)
local operation, kept, in_use = ARGV[1], ARGV[2], tonumber(ARGV[3])
local rule, count, window, ticket = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6

local function exact(number)
  return string.format('%.6f', number)
end

local function forget_the_old()
  local oldest = redis.call('LINDEX', admitted, 0)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('LPOP', admitted)
    oldest = redis.call('LINDEX', admitted, 0)
  end
  for _, each in ipairs(given_up(seen, now)) do stop_waiting(waiters, seen, each) end
end

local operations = {}

-- {'0', ''}: admitted; {seconds until it may be, ''}; or {'-1', the rule in use}.
-- Nothing is booked: who comes when there is room is admitted. The order of asking spaces the times of coming back.
function operations.take()
  local longest, patience = tonumber(ARGV[8]), tonumber(ARGV[9])
  local use = redis.call('HMGET', state, 'rule', 'used')
  if use[1] and use[1] ~= rule and now < tonumber(use[2]) + in_use then return {'-1', use[1]} end
  redis.call('HSET', state, 'rule', rule, 'used', exact(now))
  redis.call('EXPIRE', state, kept)
  forget_the_old()
  local taken = redis.call('LLEN', admitted)
  if taken < count then
    redis.call('RPUSH', admitted, exact(now))
    redis.call('PEXPIRE', admitted, math.ceil(window * 1000) + 1000)
    stop_waiting(waiters, seen, ticket)
    return {'0', ''}
  end
  local rank = ask(waiters, state, ticket)
  local leaves = tonumber(redis.call('LINDEX', admitted, taken - count + rank % count))
  local wait = math.max(leaves + window * (1 + math.floor(rank / count)) - now, 0.001)
  redis.call('ZADD', seen, now + math.min(wait, longest) + patience, ticket)
  redis.call('EXPIRE', waiters, kept)
  redis.call('EXPIRE', seen, kept)
  return {exact(wait), ''}
end

function operations.withdraw()
  return stop_waiting(waiters, seen, ticket)
end

return operations[operation]()
