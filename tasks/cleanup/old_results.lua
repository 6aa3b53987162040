-- Removes those of the keys that hold a result of a task that ended before the given time; how many. Decided where the
-- result lies, so that one that is written again meanwhile is not lost. ISO times of one zone (UTC) sort as text. A
-- value that is not a result of Celery's is left alone.
local oldest, removed = ARGV[1], 0
for _, key in ipairs(KEYS) do
  local text = redis.call('TYPE', key).ok == 'string' and redis.call('GET', key)
  local understood, result = pcall(cjson.decode, text or '')
  if understood and type(result) == 'table' and type(result.date_done) == 'string' and result.date_done < oldest then
    removed = removed + redis.call('UNLINK', key)
  end
end
return removed
