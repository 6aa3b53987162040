-- A resource pool: a hash with its size and how many units are available.
local pool = KEYS[1]
local operation = ARGV[1]
local size, available = unpack(redis.call('HMGET', pool, 'size', 'available'))
local operations = {}

-- Units that are taken stay taken when a pool is made again with another size.
function operations.make()
  local new_size, now = tonumber(ARGV[2]), ARGV[3]
  local taken = size and available and (size - available) or 0
  redis.call('HSET', pool, 'size', new_size, 'available', math.max(0, new_size - taken), 'created_at', now)
end

-- 1: taken; 0: none is available; -1: there is no such pool.
function operations.take()
  if not available then return -1 end
  if tonumber(available) < 1 then return 0 end
  redis.call('HINCRBY', pool, 'available', -1)
  return 1
end

-- 1: given back; 0: none was taken; -1: there is no such pool.
function operations.give_back()
  if not size then return -1 end
  if tonumber(available) >= tonumber(size) then return 0 end
  redis.call('HINCRBY', pool, 'available', 1)
  return 1
end

return operations[operation]()
