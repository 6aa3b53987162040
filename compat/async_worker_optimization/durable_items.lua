-- items: "owner|number" -> a sealed item that was not answered yet. last_number: the number of the last item.
local items, last_number = unpack(KEYS)
local operation, owner = ARGV[1], ARGV[2]
local operations = {}

-- The field that the item is kept under.
function operations.put()
  local sealed = ARGV[3]
  local field = owner .. '|' .. string.format('%016d', redis.call('INCR', last_number))
  redis.call('HSET', items, field, sealed)
  return field
end

-- The items of all other owners, fields and values in turn. Whoever asks first gets an item: it belongs to its new owner
-- before anybody else can ask.
function operations.take_over()
  local taken = {}
  local all = redis.call('HGETALL', items)
  for i = 1, #all, 2 do
    local field, sealed = all[i], all[i + 1]
    local other, number = string.match(field, '^(.*)|(%d+)$')
    if other ~= owner then
      redis.call('HDEL', items, field)
      field = owner .. '|' .. number
      redis.call('HSET', items, field, sealed)
      taken[#taken + 1] = field
      taken[#taken + 1] = sealed
    end
  end
  return taken
end

return operations[operation]()
