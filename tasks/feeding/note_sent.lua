-- Notes envelopes that are about to be sent, for whoever feeds next. KEYS: lease, record, sent.
-- ARGV: token, seconds, envelope, its runs, envelope … Returns 0 where the lease is another feeder's, or the batch gone.
local lease, record, sent = KEYS[1], KEYS[2], KEYS[3]
local token, ttl = ARGV[1], ARGV[2]

if redis.call('HGET', lease, 'token') ~= token or redis.call('EXISTS', record) == 0 then
  return 0
end
redis.call('HSET', sent, unpack(ARGV, 3))
redis.call('EXPIRE', sent, ttl)
redis.call('HINCRBY', record, 'envelopes', (#ARGV - 2) / 2)
return 1
