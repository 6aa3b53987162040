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

return operations[operation]()
