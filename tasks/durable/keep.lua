-- Keeps the outcomes of one envelope, those that are the first of their items; of a batch that is gone, nothing.
-- KEYS: record, done, failed, blocks, index, sent, open, further keys of the batch.
-- ARGV: id of the batch, generation, envelope, runs "0-9,12-12", runs of the failed ones, items run again, block,
-- seconds, child, its runs, child …
-- A batch that something follows stays open until whoever feeds has seen to that.
-- Returns how many outcomes were the first of their items, and whether the batch has ended with them.
--
-- `done` and `failed` have a bit for each item. `index` has each run of items by its first one: "block:first".
local record, done, failed, blocks, index, sent, open = unpack(KEYS, 1, 7)
local id, generation, envelope, runs, failed_runs, retries, block, ttl = unpack(ARGV, 1, 8)
local ZERO, FULL = '\0', '\255'

redis.call('HDEL', sent, envelope)
if redis.call('HGET', record, 'generation') ~= generation then
  return {0, 0}
end

local function each(text, call)
  for first, last in string.gmatch(text, '(%d+)-(%d+)') do
    call(tonumber(first), tonumber(last))
  end
end

local fresh, new_runs, begin = 0, {}, nil

local function bit(position)
  if redis.call('SETBIT', done, position, 1) == 0 then
    fresh = fresh + 1
    begin = begin or position
  elseif begin then
    new_runs[#new_runs + 1], begin = {begin, position - 1}, nil
  end
end

each(runs, function(first, last)
  local position = first
  while position <= last do
    local length = math.floor((last + 1 - position) / 8)
    if position % 8 == 0 and length > 0 then  -- Whole bytes at once.
      local at = position / 8
      local bytes = redis.call('GETRANGE', done, at, at + length - 1)
      if bytes == string.rep(ZERO, #bytes) then
        redis.call('SETRANGE', done, at, string.rep(FULL, length))
        begin = begin or position
        fresh = fresh + 8 * length
        position = position + 8 * length
      else
        for one = position, position + 8 * length - 1 do bit(one) end
        position = position + 8 * length
      end
    else
      bit(position)
      position = position + 1
    end
  end
  if begin then
    new_runs[#new_runs + 1], begin = {begin, last}, nil
  end
end)

for at = 9, #ARGV, 2 do
  local has_all = true
  each(ARGV[at + 1], function(first, last)
    for position = first, last do
      if has_all and redis.call('GETBIT', done, position) == 0 then has_all = false end
    end
  end)
  if not has_all then redis.call('HSETNX', sent, ARGV[at], ARGV[at + 1]) end
end

local total = tonumber(redis.call('HGET', record, 'total'))
local count = tonumber(redis.call('HGET', record, 'done') or 0)
if fresh == 0 then
  return {0, 0}
end

local number = redis.call('HINCRBY', record, 'arrived', 1)
redis.call('HSET', blocks, number, block)
redis.call('HINCRBY', record, 'kept_bytes', #block)
local function is_new(position)
  for _, run in ipairs(new_runs) do
    if run[1] <= position and position <= run[2] then return true end
  end
  return false
end
local failures = 0
each(failed_runs, function(first, last)
  for position = first, last do
    if is_new(position) then
      redis.call('SETBIT', failed, position, 1)
      failures = failures + 1
    end
  end
end)
for _, run in ipairs(new_runs) do
  local first, last = run[1], run[2]
  if tonumber(generation) > 0 then
    -- The items behind this run are in the block that had it before, their errors that are to run again included.
    local found = redis.call('ZREVRANGEBYSCORE', index, last + 1, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if found[2] and tonumber(found[2]) <= last then
      redis.call('ZADD', index, last + 1, string.match(found[1], '^%d+') .. ':' .. (last + 1))
    end
  end
  redis.call('ZREMRANGEBYSCORE', index, first, last)
  redis.call('ZADD', index, first, number .. ':' .. first)
end
count = redis.call('HINCRBY', record, 'done', fresh)
if failures > 0 then redis.call('HINCRBY', record, 'failed', failures) end
if tonumber(retries) > 0 then redis.call('HINCRBY', record, 'retries', retries) end

local has_ended = total and count >= total
if has_ended then
  local time = redis.call('TIME')
  redis.call('HSET', record, 'ended', time[1] + time[2] / 1000000)
  if redis.call('HEXISTS', record, 'then') == 0 then redis.call('ZREM', open, id) end
end
if has_ended or number == 1 then
  for at, key in ipairs(KEYS) do
    if at ~= 7 then redis.call('EXPIRE', key, ttl) end
  end
end
return {fresh, has_ended and 1 or 0}
