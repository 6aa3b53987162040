-- order: "number:id" by score. tasks: id -> its number, 16 digits, and the sealed task. last_number: the last number.
local order, tasks, last_number = unpack(KEYS)
local operation = ARGV[1]
local operations = {}

local function remove(id)
  local kept = redis.call('HGET', tasks, id)
  if not kept then return 0 end
  redis.call('ZREM', order, string.sub(kept, 1, 16) .. ':' .. id)
  return redis.call('HDEL', tasks, id)
end

-- A task without a number of its own gets the next.
function operations.add()
  local id, score, sealed, number = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
  remove(id)
  if number == '' then number = string.format('%016d', redis.call('INCR', last_number)) end
  redis.call('ZADD', order, score, number .. ':' .. id)
  redis.call('HSET', tasks, id, number .. sealed)
  return number
end

function operations.remove()
  return remove(ARGV[2])
end

-- The first task, unless the caller holds one that goes before it, which has this score and number.
function operations.take()
  local own_score, own_number = ARGV[2], ARGV[3]
  local member, score = unpack(redis.call('ZRANGE', order, 0, 0, 'WITHSCORES'))
  if not member then return nil end
  local number, id = string.sub(member, 1, 16), string.sub(member, 18)
  if own_score ~= '' then
    local mine, first = tonumber(own_score), tonumber(score)
    if mine < first or (mine == first and own_number < number) then return nil end
  end
  local kept = redis.call('HGET', tasks, id)
  redis.call('ZREM', order, member)
  redis.call('HDEL', tasks, id)
  return {id, score, number, string.sub(kept, 17)}
end

return operations[operation]()
