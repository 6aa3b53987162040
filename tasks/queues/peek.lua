-- Which messages on one page of a queue's list mention a text, or how many on a page of a hash do. The key is among the
-- arguments: Redis 7 lets a user who may only read run no script that names a key in its place.
local operation, key, text, at, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local operations = {}

-- {messages on the page, those that mention the text}
function operations.mentioning()
  local page, found = redis.call('LRANGE', key, at, at + count - 1), {}
  for _, raw in ipairs(page) do
    if string.find(raw, text, 1, true) then found[#found + 1] = raw end
  end
  return {#page, found}
end

-- {next cursor, how many mention the text}
function operations.counting()
  local cursor, page = unpack(redis.call('HSCAN', key, at, 'COUNT', count))
  local found = 0
  for i = 2, #page, 2 do
    if string.find(page[i], text, 1, true) then found = found + 1 end
  end
  return {cursor, found}
end

-- Of the envelopes on a page: {group, label, time sent, group, …}
local function envelopes(page, first, step)
  local found = {}
  for i = first, #page, step do
    local raw = page[i]
    local group = string.find(raw, '"task": ?"graft.batch"') and string.match(raw, '"group": ?"([^"]+)"')
    if group then
      found[#found + 1] = group
      found[#found + 1] = string.match(raw, '"argsrepr": ?"(%(.-, %d+ items from %d+%))"') or ''
      found[#found + 1] = string.match(raw, '"graft_sent_at": ?([%d.]+)') or '0'
    end
  end
  return found
end

-- {messages on the page, its envelopes}
function operations.envelopes_in_list()
  local page = redis.call('LRANGE', key, at, at + count - 1)
  return {#page, envelopes(page, 1, 1)}
end

-- {next cursor, its envelopes}
function operations.envelopes_in_hash()
  local cursor, page = unpack(redis.call('HSCAN', key, at, 'COUNT', count))
  return {cursor, envelopes(page, 2, 2)}
end

-- Of each message on a page: id, task, what stands for its arguments where it is an envelope, group, time sent, ETA,
-- queue (of one that a worker holds, or that waits for its time). Taken next is what stands on the right.
local function headers(raw, found)
  local task = string.match(raw, '"task": ?"([^"]*)"') or ''
  local is_envelope = task == 'graft.batch' or task == 'graft.reduce'
  found[#found + 1] = string.match(raw, '"id": ?"([^"]*)"') or '?'
  found[#found + 1] = task
  found[#found + 1] = is_envelope and string.match(raw, '"argsrepr": ?"(%(.-, %d+ items from %d+%))"') or ''
  found[#found + 1] = string.match(raw, '"group": ?"([^"]+)"') or ''
  found[#found + 1] = string.match(raw, '"graft_sent_at": ?([%d.]+)') or ''
  found[#found + 1] = string.match(raw, '"eta": ?"([^"]*)"') or ''
  found[#found + 1] = string.match(string.sub(raw, -300), ', ?"[^"]*", ?"([^"]*)"%]$') or string.match(raw, '^([^\n"]*)\n') or ''
end

-- {messages on the page, the seven of each}; at counts from the right
function operations.headers_in_list()
  local page, found = redis.call('LRANGE', key, -at - count, -at - 1), {}
  for i = #page, 1, -1 do headers(page[i], found) end
  return {#page, found}
end

-- {next cursor, the seven of each}
function operations.headers_in_hash()
  local cursor, page = unpack(redis.call('HSCAN', key, at, 'COUNT', count))
  local found = {}
  for i = 2, #page, 2 do headers(page[i], found) end
  return {cursor, found}
end

return operations[operation]()
