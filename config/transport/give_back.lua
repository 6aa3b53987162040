-- Puts messages that are held back on their lists, unless they were settled or given back meanwhile, or renewed.
-- A script that has begun to write is not stopped by maxmemory: what goes back takes the room that it had.
-- KEYS: the record, its index, what the marks of those that went back begin with.
-- ARGV: the last time at which a lease may have been renewed, or '' for any; how long marks last, in seconds; how long
-- signs last, in ms; LPUSH or RPUSH; then for each message: its tag, the number of its lists, and for each of these the
-- list, the signs of its queue, and the text.
local record, index, returned = unpack(KEYS)
local latest, marks_last, signs_last, push = tonumber(ARGV[1]), ARGV[2], ARGV[3], ARGV[4]

local function give_back(tag, first, last)
  redis.call('ZREM', index, tag)
  if redis.call('HEXISTS', record, tag) == 0 then return end
  for at = first, last, 3 do
    local list, signs, text = unpack(ARGV, at, at + 2)
    redis.call(push, list, text)
    redis.call('LPUSH', signs, 1)
    redis.call('PEXPIRE', signs, signs_last)
  end
  -- In the same step: whoever still runs it can tell that it is another's now.
  redis.call('SET', returned .. tag, 1, 'EX', marks_last)
  redis.call('HDEL', record, tag)  -- Last: where a list is none, nothing is lost.
end

local at = 5
while at <= #ARGV do
  local tag, last = ARGV[at], at + 1 + 3 * ARGV[at + 1]
  local renewed = latest and redis.call('ZSCORE', index, tag)
  if not (renewed and tonumber(renewed) > latest) then give_back(tag, at + 2, last) end
  at = last + 1
end
