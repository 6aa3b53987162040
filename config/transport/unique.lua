-- One call at a time under a key, which is a hash: the id of the call that has it, since when, whether it has begun, and
-- whether it has ended (then the key stays for a while, so that the call is not made again).
-- ARGV: operation, id, then
--   push: what to do about another call, ms that the key stays, ms that a wake-up stays, message, queue, and its time
--         where it is to wait for that (due.lua)
--         KEYS: key, list, wake-ups, those of due.lua → nil where the message is in its place now, else {id, state,
--         seconds since a sign}
--   begin: ms; KEYS: key, the mark of a delivery that went back → 1 where the call has the key, 0 where another has it
--          (it was replaced, or a copy of it has ended), -1 where the message of this run went back: another run asks
--   end: ms that the key stays afterwards; KEYS: key, and that mark, where a run ends → nothing is done where it is set
--   seen: the call has been found alive
-- Beside the key stands one for each call that was replaced, as long as that may wait: it does not begin, though the one
-- that took its place has ended. No key of a call has a line feed.
local key, list, wakeups, times, messages, counts, mover = unpack(KEYS)
local operation, id = ARGV[1], ARGV[2]
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local holder, begun, ended, seen = unpack(redis.call('HMGET', key, 'id', 'begun', 'ended', 'seen'))

local operations = {}

local function has_gone_back()
  return KEYS[2] and redis.call('EXISTS', KEYS[2]) == 1
end

function operations.push()
  local mode, hold, lasts, message, queue, due = unpack(ARGV, 3)
  if holder and holder ~= id and (ended or begun or mode ~= 'replace') then
    return {holder, ended and 'ended' or begun and 'begun' or 'waiting', string.format('%.3f', now - seen)}
  end
  if holder and holder ~= id and not ended then redis.call('SET', key .. '\n' .. holder, 1, 'PX', hold) end
  if holder ~= id or ended then redis.call('UNLINK', key) end
  redis.call('HSET', key, 'id', id, 'seen', now)
  redis.call('PEXPIRE', key, hold)
  if due and redis.call('EXISTS', mover .. ':seen') == 1 then
    local text = table.concat({queue, list, wakeups, message}, '\n')
    if redis.call('HSET', messages, id, text) == 1 then redis.call('HINCRBY', counts, queue, 1) end
    redis.call('ZADD', times, due, id)
    return false
  end
  redis.call('LPUSH', list, message)
  redis.call('LPUSH', wakeups, 1)
  redis.call('PEXPIRE', wakeups, lasts)
  return false
end

function operations.begin()
  if has_gone_back() then return -1 end
  if (holder and holder ~= id) or redis.call('EXISTS', key .. '\n' .. id) == 1 then return 0 end
  if ended then redis.call('UNLINK', key) end
  redis.call('HSET', key, 'id', id, 'begun', 1, 'seen', now)
  redis.call('PEXPIRE', key, ARGV[3])
  return 1
end

operations['end'] = function()
  if has_gone_back() then return -1 end
  return give_key_back(key, id, tonumber(ARGV[3]))
end

function operations.seen()
  if holder == id then redis.call('HSET', key, 'seen', now) end
  return 0
end

return operations[operation]()
