-- The feeder's lease. KEYS: lease, last token. ARGV: operation, then
--   take: holder, milliseconds, the smallest token that will do → token, or 0 where somebody holds it
--   renew: token, milliseconds → whether it is still this one's
--   release: token
--   fence: token, set where it is later than the one at this key
local lease, last = KEYS[1], KEYS[2]
local operation = ARGV[1]

if operation == 'take' then
  if redis.call('EXISTS', lease) == 1 then return '0' end
  local time = redis.call('TIME')
  local micros = string.format('%d%06d', time[1], time[2])
  local token = math.max(tonumber(micros), tonumber(redis.call('GET', last) or 0) + 1, tonumber(ARGV[4]))
  local text = string.format('%.0f', token)
  redis.call('SET', last, text)
  redis.call('HSET', lease, 'token', text, 'holder', ARGV[2])
  redis.call('PEXPIRE', lease, ARGV[3])
  return text
end
if operation == 'fence' then
  if tonumber(redis.call('GET', lease) or 0) < tonumber(ARGV[2]) then redis.call('SET', lease, ARGV[2]) end
  return 1
end
if redis.call('HGET', lease, 'token') ~= ARGV[2] then return 0 end
if operation == 'renew' then
  redis.call('PEXPIRE', lease, ARGV[3])
  redis.call('SET', last .. ':at', redis.call('TIME')[1], 'EX', 7 * 86400)
else
  redis.call('UNLINK', lease)
end
return 1
