-- latest: the number of the event that came last. gate: there while another event may not be handled yet.
local latest, gate = unpack(KEYS)
local operation, kept = ARGV[1], ARGV[2]
local operations = {}

function operations.offer()
  local number = redis.call('INCR', latest)
  redis.call('EXPIRE', latest, kept)
  return number
end

-- 0: handle it; -1: a later one came; else milliseconds to wait.
function operations.try_handle()
  local number, interval_ms = ARGV[4], tonumber(ARGV[5])
  local left_ms = redis.call('PTTL', gate)
  if redis.call('GET', latest) ~= number then return -1 end
  if left_ms > 0 then return left_ms end
  if interval_ms > 0 then redis.call('SET', gate, '1', 'PX', interval_ms) end
  return 0
end

return operations[operation]()
