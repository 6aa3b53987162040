-- Of a call with a unique key that has ended: frees the key if the call has it still, and no copy of it has ended
-- before. Where keeps is not 0 the key stays for so many ms, so that the call is not made again.
local function give_key_back(key, call, keeps)
  local holder, ended = unpack(redis.call('HMGET', key, 'id', 'ended'))
  if holder ~= call or ended then return 0 end
  if keeps <= 0 then return redis.call('UNLINK', key) end
  redis.call('HSET', key, 'ended', 1)
  redis.call('PEXPIRE', key, keeps)
  return 1
end
