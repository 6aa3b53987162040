-- One page of the stream of attempts: {id of its last entry, or '' behind the end; entries whose call or batch is wanted}.
-- The key is among the arguments: Redis 7 lets a user who may only read run no script that names a key in its place.
local stream, wanted, after, count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local page, found = redis.call('XRANGE', stream, after, '+', 'COUNT', count), {}
for _, entry in ipairs(page) do
  local fields = entry[2]
  for i = 1, #fields, 2 do
    local name = fields[i]
    if (name == 'id' or name == 'batch') and fields[i + 1] == wanted then
      found[#found + 1] = entry
      break
    end
  end
end
return {#page == count and page[#page][1] or '', found}
