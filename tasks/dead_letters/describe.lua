-- The letters of those ids without their envelopes and tracebacks, as JSON each; '' for one that is gone. The key is among
-- the arguments: Redis 7 lets a user who may only read run no script that names a key in its place.
local letters, longest = ARGV[1], tonumber(ARGV[2])
local found = {}
for i = 3, #ARGV do
  local text = redis.call('HGET', letters, ARGV[i])
  if text then
    -- What an error says may be no text that cjson knows, such as half a surrogate pair: such a letter is left whole.
    local can_read, letter = pcall(cjson.decode, text)
    if can_read then
      letter.envelope, letter.traceback, letter.error = '', '', string.sub(letter.error, 1, longest)
      text = cjson.encode(letter)
    end
    found[#found + 1] = text
  else
    found[#found + 1] = ''
  end
end
return found
