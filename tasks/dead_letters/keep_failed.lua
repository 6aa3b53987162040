-- Keeps a letter of the reason "failed", and lets go of the oldest of its kind: of its cause above per_cause, of all
-- above in_all or most_bytes, and those kept before cutoff. Without an id it only lets go. Returns how many went.
local letters, given_up, failed, size, cause = unpack(KEYS)
local id, text, at = ARGV[1], ARGV[2], ARGV[3]
local per_cause, in_all, most_bytes, cutoff, ttl = unpack(ARGV, 4)
per_cause, in_all, most_bytes = tonumber(per_cause), tonumber(in_all), tonumber(most_bytes)
local gone = 0

local function sum() return tonumber(redis.call('GET', size) or 0) end

local function drop(name)
  local bytes = redis.call('HSTRLEN', letters, name)
  if redis.call('ZREM', failed, name) == 1 then
    redis.call('HDEL', letters, name)
    redis.call('DECRBY', size, bytes)
    gone = gone + 1
  end
end

if id ~= '' then
  if redis.call('ZSCORE', failed, id) then redis.call('DECRBY', size, redis.call('HSTRLEN', letters, id)) end
  redis.call('HSET', letters, id, text)
  redis.call('ZREM', given_up, id)
  redis.call('ZADD', failed, at, id)
  redis.call('INCRBY', size, #text)
  redis.call('ZADD', cause, at, id)
  redis.call('EXPIRE', cause, ttl)
  for _, old in ipairs(redis.call('ZRANGE', cause, 0, -per_cause - 1)) do
    redis.call('ZREM', cause, old)
    drop(old)
  end
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', failed, '-inf', cutoff, 'LIMIT', 0, 1000)) do drop(old) end
for _, old in ipairs(redis.call('ZRANGE', failed, 0, -in_all - 1)) do drop(old) end
while sum() > most_bytes do
  local oldest = redis.call('ZRANGE', failed, 0, 0)[1]
  if not oldest or oldest == id then  -- A letter that was removed by hand was never taken off the sum.
    redis.call('DECRBY', size, sum() - (oldest and redis.call('HSTRLEN', letters, oldest) or 0))
    break
  end
  drop(oldest)
end
return gone
