-- Which of the ids wanted are on one page of a queue's list, or of the hash of messages that workers hold.
local key = KEYS[1]
local operation, at, count = ARGV[1], ARGV[2], ARGV[3]
local wanted, found = {}, {}
for i = 4, #ARGV do wanted[ARGV[i]] = true end

local function note(raw)
  -- kombu writes the properties last, and the task's id among them.
  local id = string.match(string.sub(raw, -2000), '"correlation_id": ?"([^"]*)"')
  if id and wanted[id] then
    found[#found + 1] = id
    found[#found + 1] = string.match(raw, '"eta": ?"([^"]*)"') or ''
  end
end

local operations = {}

-- {messages on the page, ids found, each with its ETA or ''}
function operations.in_list()
  local page = redis.call('LRANGE', key, at, at + count - 1)
  for _, raw in ipairs(page) do note(raw) end
  return {#page, found}
end

-- {next cursor, ids found, each with its ETA or ''}
function operations.in_hash()
  local cursor, page = unpack(redis.call('HSCAN', key, at, 'COUNT', count))
  for i = 2, #page, 2 do note(page[i]) end
  return {cursor, found}
end

return operations[operation]()
