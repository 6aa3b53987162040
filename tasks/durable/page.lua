-- Outcomes from one item on: the runs that follow each other, and the blocks that they are in, about so many bytes.
-- KEYS: done, index, blocks. ARGV: position, bytes, runs at most.
-- Returns {first, block number, first, …}, {block number, block, …}; nothing where the item has no outcome.
local done, index, blocks = KEYS[1], KEYS[2], KEYS[3]
local position, room, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])

if redis.call('GETBIT', done, position) == 0 then
  return {{}, {}}
end
local found = redis.call('ZREVRANGEBYSCORE', index, position, '-inf', 'LIMIT', 0, 1)
for _, one in ipairs(redis.call('ZRANGEBYSCORE', index, '(' .. position, '+inf', 'LIMIT', 0, most)) do
  found[#found + 1] = one
end
local runs, texts, has = {}, {}, {}
for _, one in ipairs(found) do
  local number, first = string.match(one, '^(%d+):(%d+)$')
  if not has[number] then
    if room <= 0 then break end
    local block = redis.call('HGET', blocks, number)
    if not block then break end
    has[number] = true
    texts[#texts + 1], texts[#texts + 2] = number, block
    room = room - #block
  end
  runs[#runs + 1], runs[#runs + 2] = first, number
end
return {runs, texts}
