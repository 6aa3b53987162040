-- Those that wait in the order of asking, for the scripts that follow. waiters: ticket -> order of asking. seen: waiting
-- ticket -> when it is given up.
local function stop_waiting(waiters, seen, ticket)
  redis.call('ZREM', seen, ticket)
  return redis.call('ZREM', waiters, ticket)
end

local function given_up(seen, now)
  return redis.call('ZRANGEBYSCORE', seen, '-inf', now)
end

local function ask(waiters, state, ticket)
  if not redis.call('ZSCORE', waiters, ticket) then
    redis.call('ZADD', waiters, redis.call('HINCRBY', state, 'number', 1), ticket)
  end
  return redis.call('ZRANK', waiters, ticket)
end

