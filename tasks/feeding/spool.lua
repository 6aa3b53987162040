-- Adds a page of items to a batch that is being spooled.
-- KEYS: record, items, pages, name (or the record once more), plan. ARGV: id, first position, page, byte limit, seconds.
-- Returns the bytes spooled so far; -1 where the batch is no longer this caller's; -2 where the page is too much.
local record, items, pages, held_by = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, first, page, limit, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]

if redis.call('EXISTS', record) == 0 or (held_by ~= record and redis.call('GET', held_by) ~= id) then
  return -1
end
if tonumber(redis.call('HGET', record, 'bytes') or 0) + #page > limit then
  return -2
end
local time = redis.call('TIME')
redis.call('HSET', items, first, page)
redis.call('ZADD', pages, first, first)
redis.call('HSET', record, 'spooled_at', time[1] + time[2] / 1000000)
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, ttl)
end
return redis.call('HINCRBY', record, 'bytes', #page)
