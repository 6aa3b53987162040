-- What waits on pages of queues' lists, or is on a page of a hash. ARGV: operation, text, messages on a page, then keys,
-- each with where its page begins. The keys are among the arguments: Redis 7 lets a user who may only read run no script
-- that names a key in its place.
local operation, text, count, key, at = unpack(ARGV, 1, 5)
local operations = {}

-- Of each list {messages on its page, what is found among them}
local function in_lists(find)
  local pages = {}
  for i = 4, #ARGV, 2 do
    local page = redis.call('LRANGE', ARGV[i], ARGV[i + 1], ARGV[i + 1] + count - 1)
    pages[#pages + 1] = {#page, find(page, 1, 1)}
  end
  return pages
end

-- Those that mention the text
function operations.mentioning()
  return in_lists(function(page)
    local found = {}
    for _, raw in ipairs(page) do
      if string.find(raw, text, 1, true) then found[#found + 1] = raw end
    end
    return found
  end)
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
    local from = string.find(raw, '"headers"', 1, true) or 1  -- Behind the body, which may be long.
    local group = string.find(raw, '"task": ?"graft.batch"', from) and string.match(raw, '"group": ?"([^"]+)"', from)
    if group then
      found[#found + 1] = group
      found[#found + 1] = string.match(raw, '"argsrepr": ?"(%(.-, %d+ items from %d+%))"', from) or ''
      found[#found + 1] = string.match(raw, '"graft_sent_at": ?([%d.]+)', from) or '0'
    end
  end
  return found
end

-- The envelopes
function operations.envelopes_in_lists()
  return in_lists(envelopes)
end

-- {next cursor, its envelopes}
function operations.envelopes_in_hash()
  local cursor, page = unpack(redis.call('HSCAN', key, at, 'COUNT', count))
  return {cursor, envelopes(page, 2, 2)}
end

-- Of each message on a page: id, task, what stands for its arguments where it is an envelope, group, time sent, ETA,
-- queue (of one that a worker holds, or that waits for its time). Taken next is what stands on the right.
local function headers(raw, found)
  local from = string.find(raw, '"headers"', 1, true) or 1
  local task = string.match(raw, '"task": ?"([^"]*)"', from) or ''
  local is_envelope = task == 'graft.batch' or task == 'graft.reduce'
  found[#found + 1] = string.match(raw, '"id": ?"([^"]*)"', from) or '?'
  found[#found + 1] = task
  found[#found + 1] = is_envelope and string.match(raw, '"argsrepr": ?"(%(.-, %d+ items from %d+%))"', from) or ''
  found[#found + 1] = string.match(raw, '"group": ?"([^"]+)"', from) or ''
  found[#found + 1] = string.match(raw, '"graft_sent_at": ?([%d.]+)', from) or ''
  found[#found + 1] = string.match(raw, '"eta": ?"([^"]*)"', from) or ''
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
