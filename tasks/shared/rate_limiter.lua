-- A token bucket. state: the period, when it would be full again, when it was last used. booked: ticket -> when it may go.
local state, booked = unpack(KEYS)
local operation, kept, in_use = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local period, slack, ticket = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6

local function exact(number)
  return string.format('%.6f', number)
end

local function full_at()
  return tonumber(redis.call('HGET', state, 'full_at') or 0)
end

local operations = {}

-- {seconds to wait, ''}, or {'-1', the period in use}. A ticket that has a token booked is told the same time again.
function operations.book()
  local set = redis.call('HGET', state, 'period')
  if set and set ~= period and now < tonumber(redis.call('HGET', state, 'used')) + in_use then return {'-1', set} end
  local at = redis.call('ZSCORE', booked, ticket)
  if not at then
    at = math.max(now, full_at() - slack)
    redis.call('HSET', state, 'full_at', exact(math.max(full_at(), now) + period), 'period', period, 'used', now)
    redis.call('ZREMRANGEBYSCORE', booked, '-inf', now - kept)
    redis.call('ZADD', booked, exact(at), ticket)
    redis.call('EXPIRE', state, kept)
    redis.call('EXPIRE', booked, kept)
  end
  return {exact(math.max(0, at - now)), ''}
end

-- Gives the last token back; one before it is lost, for those behind it have their times already.
function operations.cancel()
  local last = redis.call('ZRANGE', booked, -1, -1)[1]
  if redis.call('ZREM', booked, ticket) == 0 or last ~= ticket then return 0 end
  redis.call('HSET', state, 'full_at', exact(full_at() - period))
  return 1
end

function operations.used()
  return redis.call('ZREM', booked, ticket)
end

return operations[operation]()
