-- Spreads the messages of one batch anew: they take longer, or less long, than was expected when they were sent.
-- KEYS: the list. ARGV: how a message of the batch can be told, what their spacing is multiplied with, and the virtual
-- time up to which the batch has been served; the list is left alone if it has more messages than the last says.
-- {the new time, how many of its messages wait}
local list = KEYS[1]
local mark, factor, served, most = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local untouched = {ARGV[3], 0}
if redis.call('LLEN', list) > most then return untouched end
local all = redis.call('LRANGE', list, 0, -1)

-- In the order in which they are taken: its own, and others. Who has no start stays with the one before.
local own, others, before = {}, {}, 0
for at = #all, 1, -1 do
  local text = all[at]
  local head, start = string.match(text, '^({"graft_start": ([%d.]+), )')
  before = tonumber(start) or before
  if head and string.find(text, mark, 1, true) then
    own[#own + 1] = {start = before, rest = string.sub(text, #head + 1)}
  else
    others[#others + 1] = {start = before, text = text}
  end
end
if #own == 0 then return untouched end
local first = own[1].start
for _, one in ipairs(own) do first = math.min(first, one.start) end
for _, one in ipairs(own) do
  one.start = first + (one.start - first) * factor
  one.text = string.format('{"graft_start": %.6f, ', one.start) .. one.rest
end

redis.call('DEL', list)
local i, j = 1, 1
while i <= #own or j <= #others do
  if not others[j] or own[i] and own[i].start <= others[j].start then
    redis.call('LPUSH', list, own[i].text)
    i = i + 1
  else
    redis.call('LPUSH', list, others[j].text)
    j = j + 1
  end
end
return {string.format('%.6f', first + (served - first) * factor), #own}
