-- items: the sealed values. senders, receivers: id -> end of its lease. state: the capacity, and which sides ever came.
-- channels: the names of all channels by their last use.
local items, senders, receivers, state, channels = unpack(KEYS)
local operation, kept = ARGV[1], ARGV[2]
local capacity, lease, name, holder = ARGV[4], tonumber(ARGV[5]), ARGV[6], ARGV[7]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6

local function alive(side)
  redis.call('ZREMRANGEBYSCORE', side, '-inf', now)
  return redis.call('ZCARD', side)
end

local function has_gone(side, flag)
  return redis.call('HEXISTS', state, flag) == 1 and alive(side) == 0
end

local function enter(side, flag)
  redis.call('HSET', state, flag, 1)
  redis.call('ZADD', side, now + lease, holder)
  redis.call('ZADD', channels, now, name)
  redis.call('ZREMRANGEBYSCORE', channels, '-inf', now - kept)
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, kept) end
end

local operations = {}

-- {1, ''}: sent; {0, ''}: full; {-1, ''}: nobody listens; {-2, the capacity in use}.
function operations.send()
  local sealed = ARGV[8]
  if not redis.call('ZSCORE', senders, holder) and alive(senders) == 0 and alive(receivers) == 0 then
    redis.call('HDEL', state, 'sent', 'received', 'capacity')
  end
  local set = redis.call('HGET', state, 'capacity')
  if set and set ~= capacity then return {-2, set} end
  redis.call('HSET', state, 'capacity', capacity)
  enter(senders, 'sent')
  if has_gone(receivers, 'received') then return {-1, ''} end
  if redis.call('LLEN', items) >= tonumber(capacity) then return {0, ''} end
  redis.call('RPUSH', items, sealed)
  redis.call('EXPIRE', items, kept)  -- A list that was empty has just been made.
  return {1, ''}
end

-- {1, a value}; {0, ''}: none yet; {-1, ''}: the end.
function operations.receive()
  enter(receivers, 'received')
  local value = redis.call('LPOP', items)
  if value then return {1, value} end
  return {has_gone(senders, 'sent') and -1 or 0, ''}
end

function operations.renew_sender()
  enter(senders, 'sent')
  return 1
end

function operations.renew_receiver()
  enter(receivers, 'received')
  return 1
end

local function drop_what_nobody_reads()
  if has_gone(receivers, 'received') and alive(senders) == 0 then redis.call('DEL', items, state) end
end

function operations.close_sender()
  enter(senders, 'sent')
  redis.call('ZREM', senders, holder)
  drop_what_nobody_reads()
end

function operations.close_receiver()
  redis.call('ZREM', receivers, holder)
  drop_what_nobody_reads()
end

function operations.length()
  return redis.call('LLEN', items)
end

return operations[operation]()
