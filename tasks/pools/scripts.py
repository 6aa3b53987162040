"""The Lua behind a pool in Redis: accept, begin, finish and give back, each in one step.

A pool's keys (state.py names them):

    meta      what the pool is, its state, and its totals
    waiting   accepted and not begun: ``<number><owner>`` by -priority, so equal priorities go by number
    tasks     the same member -> ``<score> <reply> <sealed task>``; ``lost:<member>`` -> holders that died with it
    running   slot -> when its lease runs out; ``held`` slot -> ``<token> <ticket> <member>``
    tickets   messages on their way to a worker -> when they were sent; ``idle``: those that wait at the worker instead
    clients   per client: the room it has reserved, when it was last heard of, the last batch it added
    results   finished tasks that nobody has read

The owner of a member is the process that alone can run it, and empty for what any worker can run.
"""

from __future__ import annotations

from typing import Final

from graft.tasks.delivery.run_counter import RUN_KEY

PRELUDE: Final = (
    f"local run_key = '{RUN_KEY}'"
    + """
redis.replicate_commands()
local meta, waiting, tasks, running, held = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local tickets, idle, clients, results, bell = KEYS[6], KEYS[7], KEYS[8], KEYS[9], KEYS[10]
local base = string.sub(meta, 1, -5)
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local known = redis.call('HMGET', meta, 'generation', 'state', 'limit', 'capacity', 'peak', 'remote')
local is_mine, state, limit, capacity = known[1] == ARGV[1], known[2], tonumber(known[3]), tonumber(known[4])
local slots = (state == 'running' or state == 'closing') and limit or 0

local function text(number) return string.format('%.6f', number) end

-- The task in *slot* goes back to its old place: its holder is gone. What a worker has ended on purpose did not die.
local function give_back(slot)
  local ticket, member = string.match(redis.call('HGET', held, slot) or '', '^%S+ (%S+) (.+)$')
  redis.call('ZREM', running, slot)
  redis.call('HDEL', held, slot)
  local kept = member and redis.call('HGET', tasks, member)
  if not kept then return end
  local is_pardoned = redis.call('HEXISTS', run_key .. ticket .. ':0', 'pardons') == 1
  if not is_pardoned then redis.call('HINCRBY', tasks, 'lost:' .. member, 1) end
  redis.call('ZADD', waiting, string.match(kept, '^%S+'), member)
  if #member == 16 then redis.call('HINCRBY', meta, 'remote', 1) end
end

local function reap()
  for _, slot in ipairs(redis.call('ZRANGEBYSCORE', running, '-inf', text(now))) do give_back(slot) end
end

-- Take a waiting task out without running it; whoever waits for it is told.
local function abandon(member)
  local kept = redis.call('HGET', tasks, member)
  redis.call('ZREM', waiting, member)
  redis.call('HDEL', tasks, member, 'lost:' .. member)
  if #member == 16 then redis.call('HINCRBY', meta, 'remote', -1) end
  redis.call('HINCRBY', meta, 'abandoned', 1)
  local client, number = string.match(kept or '', '^%S+ ([^%s:]+):(%d+) ')
  if client then
    redis.call('RPUSH', base .. 'replies:' .. client, number .. ' ')
    redis.call('EXPIRE', base .. 'replies:' .. client, 3600)
  end
end

-- The best waiting task that *owner* can run, if a slot is left for it beside the better ones that others must run.
-- What has died *deaths* times is a suspect: taken like any other ('take'), not taken but told of ('tell'), or left for
-- later ('skip') with a slot of its own, as what others must run.
local function take(owner, slot, mark, lease, suspects, deaths)
  local busy = redis.call('ZCARD', running)
  local free = slots - busy
  if free < 1 then return nil end
  local function look(first, last)
    for _, other in ipairs(redis.call('ZRANGE', waiting, first, last)) do
      if string.sub(other, 17) == owner then
        if suspects == 'take' then return other end
        local is_suspect = tonumber(redis.call('HGET', tasks, 'lost:' .. other) or 0) >= deaths
        if suspects == 'tell' or not is_suspect then return other, is_suspect end
      end
    end
  end
  local member, is_suspect = look(0, 0)
  if not member and free > 1 then member, is_suspect = look(1, free - 1) end
  if not member then return nil end
  if is_suspect then return {'suspect'} end
  if not slot or tonumber(slot) >= slots then
    slot = nil
    for number = 0, slots - 1 do
      if redis.call('HEXISTS', held, number) == 0 then slot = tostring(number) break end
    end
    if not slot then return nil end
  end
  redis.call('ZREM', waiting, member)
  if #member == 16 then redis.call('HINCRBY', meta, 'remote', -1) end
  redis.call('ZADD', running, text(now + lease), slot)
  redis.call('HSET', held, slot, mark .. ' ' .. member)
  if busy + 1 > tonumber(known[5] or 0) then redis.call('HSET', meta, 'peak', busy + 1) end
  local found = redis.call('HMGET', tasks, member, 'lost:' .. member)
  return {'task', {slot, member, found[1], found[2] or '0'}}
end

-- Tickets to send now, so that every slot that could run something has a worker coming. One that does not arrive is
-- replaced, after twice the time at each go: it may be lost, and it may wait behind other work.
local function wanted(prefix)
  local patience = tonumber(redis.call('HGET', meta, 'patience') or 5)
  if redis.call('ZREMRANGEBYSCORE', tickets, '-inf', text(now - patience)) > 0 then
    redis.call('HSET', meta, 'patience', math.min(2 * patience, 600))
  end
  local due = math.min(tonumber(redis.call('HGET', meta, 'remote') or 0), slots - redis.call('ZCARD', running))
  local made = {}
  if due < 1 then return made end
  for _ = 1, math.min(due, redis.call('SCARD', idle)) do
    redis.call('SPOP', idle)
    redis.call('RPUSH', bell, '1')
    redis.call('EXPIRE', bell, 60)
  end
  for number = 1, due - redis.call('ZCARD', tickets) do
    made[number] = prefix .. '.' .. number
    redis.call('ZADD', tickets, text(now), made[number])
  end
  return made
end

local function reserved(but)
  local sum, all = 0, redis.call('HGETALL', clients)
  for at = 1, #all, 2 do
    local client = string.match(all[at], '^room:(.+)$')
    if client and client ~= but then sum = sum + tonumber(all[at + 1]) end
  end
  return sum
end
"""
)

# ARGV: a new generation, kind, workers, capacity, limit.
OPEN: Final = (
    PRELUDE
    + """
local is_over = state == 'closed' and redis.call('ZCARD', running) == 0
if known[1] and not is_over then
  local theirs = redis.call('HMGET', meta, 'generation', 'kind', 'workers', 'capacity')
  return {theirs[1], theirs[2], theirs[3], theirs[4]}
end
redis.call('DEL', unpack(KEYS))
redis.call('HSET', meta, 'generation', ARGV[1], 'kind', ARGV[2], 'workers', ARGV[3], 'capacity', ARGV[4],
  'limit', ARGV[5], 'state', 'new')
return {ARGV[1], ARGV[2], ARGV[3], ARGV[4]}
"""
)

# ARGV: generation, base of new tickets.
START: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone'} end
if state == 'new' then
  state, slots = 'running', limit
  redis.call('HSET', meta, 'state', state, 'started', text(now))
end
return {state, wanted(ARGV[2])}
"""
)

# ARGV: generation, client, slots that workers have for this pool, whether more than one place will be needed.
# Returns the state, the places granted, and the places that other clients hold and have not used.
RESERVE: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone', 0, 0} end
if state ~= 'new' and state ~= 'running' then return {state, 0, 0} end
local others = reserved('')
local queue = capacity - redis.call('ZCARD', waiting) - others
local ready = math.max(0, math.min(slots, tonumber(ARGV[3])) - redis.call('ZCARD', running))
if queue + ready < 1 then return {state, 0, others - tonumber(redis.call('HGET', clients, 'room:' .. ARGV[2]) or 0)} end
local granted = 1
if ARGV[4] == '1' then granted = 1 + math.max(0, math.min(256, math.floor(queue / 4))) end
redis.call('HINCRBY', clients, 'room:' .. ARGV[2], granted)
redis.call('HSET', clients, 'seen:' .. ARGV[2], text(now))
return {state, granted, 0}
"""
)

# ARGV: generation, client, number of this batch, places given back, base of new tickets; then (score, owner, kept)s.
ADD: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone', {}} end
if tonumber(redis.call('HGET', clients, 'batch:' .. ARGV[2]) or 0) >= tonumber(ARGV[3]) then
  return {state, wanted(ARGV[5])}  -- Sent again because its answer was lost.
end
local count = (#ARGV - 5) / 3
local left = tonumber(redis.call('HGET', clients, 'room:' .. ARGV[2]) or 0) - count - tonumber(ARGV[4])
redis.call('HSET', clients, 'batch:' .. ARGV[2], ARGV[3], 'seen:' .. ARGV[2], text(now),
  'room:' .. ARGV[2], math.max(0, left))
redis.call('HINCRBY', meta, 'submitted', count)
for _, key in ipairs({meta, waiting, tasks, clients}) do redis.call('EXPIRE', key, 3600) end
for at = 6, #ARGV, 3 do
  local member = string.format('%016d', redis.call('HINCRBY', meta, 'number', 1)) .. ARGV[at + 1]
  redis.call('HSET', tasks, member, ARGV[at + 2])
  redis.call('ZADD', waiting, ARGV[at], member)
  if #member == 16 then redis.call('HINCRBY', meta, 'remote', 1) end
  if state == 'closed' then abandon(member) end
end
return {state, wanted(ARGV[5])}
"""
)

# ARGV: generation, owner, ticket, token, lease, base of new tickets, whether to wait for more, what becomes of a
# suspect, the deaths that make one, whether this ticket's message came back.
BEGIN: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone'} end
redis.call('ZREM', tickets, ARGV[3])
redis.call('SREM', idle, ARGV[3])
redis.call('HDEL', meta, 'patience')
reap()
local has_returned = ARGV[10] == '1'
local mine = redis.call('HGETALL', held)
for at = 1, #mine, 2 do
  if string.match(mine[at + 1], '^%S+ (%S+)') == ARGV[3] then
    give_back(mine[at])  -- The process that held it is gone.
    has_returned = true
  end
end
if has_returned then return {'done', wanted(ARGV[6])} end  -- Its own deaths are counted, too: it risks no more.
local found = take(ARGV[2], nil, ARGV[4] .. ' ' .. ARGV[3], tonumber(ARGV[5]), ARGV[8], tonumber(ARGV[9]))
if found then return found end
if ARGV[7] == '1' and state == 'running' then
  redis.call('ZADD', tickets, text(now), ARGV[3])
  redis.call('SADD', idle, ARGV[3])
  return {'idle'}
end
return {'done', wanted(ARGV[6])}
"""
)

# ARGV: as for BEGIN, then slot, member, whether the task failed, seconds it took, what to push, seconds to keep that,
# whether to take another. KEYS[11]: where to push.
STEP: Final = (
    PRELUDE
    + """
local mark = ARGV[4] .. ' ' .. ARGV[3]
if not is_mine or redis.call('HGET', held, ARGV[11]) ~= mark .. ' ' .. ARGV[12] then return {'lost'} end
redis.call('HDEL', held, ARGV[11])
redis.call('ZREM', running, ARGV[11])
redis.call('HDEL', tasks, ARGV[12], 'lost:' .. ARGV[12])
redis.call('HINCRBY', meta, 'completed', 1)
if ARGV[13] == '1' then redis.call('HINCRBY', meta, 'failed', 1) end
redis.call('HINCRBYFLOAT', meta, 'busy', ARGV[14])
if ARGV[15] ~= '' then
  redis.call('RPUSH', KEYS[11], ARGV[15])
  redis.call('EXPIRE', KEYS[11], ARGV[16])
end
if ARGV[17] == '1' then
  local found = take(ARGV[2], ARGV[11], mark, tonumber(ARGV[5]), ARGV[8], tonumber(ARGV[9]))
  if found then return found end
  if ARGV[7] == '1' and state == 'running' then
    redis.call('ZADD', tickets, text(now), ARGV[3])
    redis.call('SADD', idle, ARGV[3])
    return {'idle'}
  end
end
return {'done', wanted(ARGV[6])}
"""
)

# ARGV: generation, lease, slot, what is held there.
RENEW: Final = (
    PRELUDE
    + """
if not is_mine or redis.call('HGET', held, ARGV[3]) ~= ARGV[4] then return 0 end
redis.call('ZADD', running, text(now + tonumber(ARGV[2])), ARGV[3])
return 1
"""
)

# ARGV: generation, client, seconds after which a silent client is dead, base of new tickets, seconds to keep the keys.
TEND: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone', {}} end
reap()
redis.call('HSET', clients, 'seen:' .. ARGV[2], text(now))
local all = redis.call('HGETALL', clients)
for at = 1, #all, 2 do
  local client = string.match(all[at], '^seen:(.+)$')
  if client and tonumber(all[at + 1]) < now - tonumber(ARGV[3]) then
    redis.call('HDEL', clients, 'seen:' .. client, 'room:' .. client, 'batch:' .. client)
    for _, member in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do
      if string.sub(member, 17) == client then abandon(member) end
    end
  end
end
for number = 1, 10 do redis.call('EXPIRE', KEYS[number], ARGV[5]) end
return {state, wanted(ARGV[4])}
"""
)

# ARGV: generation. Returns meta, what waits, runs and is reserved, and the time.
STATUS: Final = (
    PRELUDE
    + """
if not is_mine then return {{}, 0, 0, 0, text(now)} end
local waits, runs = redis.call('ZCARD', waiting), redis.call('ZCARD', running)
return {redis.call('HGETALL', meta), waits, runs, reserved(''), text(now)}
"""
)

# ARGV: generation, the new state, base of new tickets. Closed: what waits is abandoned. Returns the tickets that run.
CLOSE: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone', {}, {}} end
local rank = {new = 1, running = 2, closing = 3, closed = 4}
if rank[ARGV[2]] > rank[state] then
  state = ARGV[2]
  redis.call('HSET', meta, 'state', state, 'ended', text(now))
  redis.call('HSETNX', meta, 'started', text(now))
end
local found = {}
if state == 'closed' then
  for _, member in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do abandon(member) end
  slots = 0
else
  slots = limit
end
for _, mark in ipairs(redis.call('HVALS', held)) do found[#found + 1] = string.match(mark, '^%S+ (%S+)') end
return {state, wanted(ARGV[3]), found}
"""
)

# ARGV: generation, the new number of slots, base of new tickets.
RESIZE: Final = (
    PRELUDE
    + """
if not is_mine then return {'gone', {}} end
redis.call('HSET', meta, 'limit', ARGV[2])
if slots > 0 then slots = tonumber(ARGV[2]) end
return {state, wanted(ARGV[3])}
"""
)

# ARGV: generation, replies. What waits to answer one of them is taken out.
WITHDRAW: Final = (
    PRELUDE
    + """
if not is_mine then return 0 end
local unwanted, count = {}, 0
for at = 2, #ARGV do unwanted[ARGV[at]] = true end
for _, member in ipairs(redis.call('ZRANGE', waiting, 0, -1)) do
  local reply = string.match(redis.call('HGET', tasks, member) or '', '^%S+ (%S+) ')
  if reply and unwanted[reply] then abandon(member) count = count + 1 end
end
return count
"""
)
