-- A worker pool: its bounds, its order, and what it has done. One operation is one step. Its keys:
--   meta      what the pool is, its state, and its totals
--   slots     <member> -> "<number>" of the slot that was given to it; once it runs "<number> begun <when> <tasks>", or
--             "<number> begun <when> @" in a client's own thread
--   waiting   <member> by its score: envelopes that wait for a slot; equal scores go by the time in the member
--   messages  <member> -> the message to publish when its turn comes, or "@<client>" for what that client runs itself
--   clients   places:<client> -> places it has, for tasks that have no outcome yet and in reserve; seen:<client> -> when
--   results   outcomes that nobody has read
local meta, slots, waiting, messages, clients, results = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local operation, generation = ARGV[1], ARGV[2]
local clock = redis.call('TIME')
local now = string.format('%.6f', clock[1] + clock[2] / 1000000)
local known = redis.call('HMGET', meta, 'generation', 'state', 'limit', 'capacity')
local is_mine, state, limit, capacity = known[1] == generation, known[2], tonumber(known[3]), tonumber(known[4])

local function is_running() return state == 'running' or state == 'closing' end

-- The number of a slot that nobody has, or nil.
local function free_slot()
  if not is_running() or redis.call('HLEN', slots) >= limit then return nil end
  local taken = {}
  for _, mark in ipairs(redis.call('HVALS', slots)) do taken[string.match(mark, '^%d+')] = true end
  for number = 0, limit - 1 do
    if not taken[tostring(number)] then return number end
  end
end

local function wait_for_slot(member, score, message)
  redis.call('HDEL', slots, member)
  redis.call('ZADD', waiting, score, member)
  redis.call('HSET', messages, member, message)
end

-- Free slots go to the best that wait. Returns the messages to publish now.
local function assign()
  local due = {}
  while true do
    local best = redis.call('ZRANGE', waiting, 0, 0)[1]
    local number = best and free_slot()
    if not number then return due end
    redis.call('ZREM', waiting, best)
    redis.call('HSET', slots, best, number)
    local message = redis.call('HGET', messages, best) or ''
    if message ~= '' and string.sub(message, 1, 1) ~= '@' then due[#due + 1] = message end
  end
end

-- The members that run, and how many tasks they have.
local function begun()
  local found, tasks = {}, 0
  local all = redis.call('HGETALL', slots)
  for at = 1, #all, 2 do
    local its = string.match(all[at + 1], 'begun %S+ (%S+)')
    if its then
      found[#found + 1] = all[at]
      tasks = tasks + (tonumber(its) or 1)
    end
  end
  return found, tasks
end

-- Places that clients have, and how many clients there are beside *but*.
local function places(but)
  local sum, others = 0, 0
  local all = redis.call('HGETALL', clients)
  for at = 1, #all, 2 do
    local kind, client = string.match(all[at], '^(%a+):(.+)$')
    if kind == 'places' then sum = sum + tonumber(all[at + 1]) end
    if kind == 'seen' and client ~= but then others = others + 1 end
  end
  return sum, others
end

local function give_back(client, count)
  local field = 'places:' .. client
  local left = tonumber(redis.call('HGET', clients, field) or 0) - tonumber(count)
  if left > 0 then redis.call('HSET', clients, field, left) else redis.call('HDEL', clients, field) end
end

local function give_back_unused(client, count)
  if count == '0' then return end
  give_back(client, count)
  redis.call('HINCRBY', meta, 'submitted', '-' .. count)
end

local operations = {}

-- The pool of this name, made unless one is in use. Returns generation, kind, workers and capacity of the one there is.
function operations.open()
  local kind, workers, room, first_limit = ARGV[3], ARGV[4], ARGV[5], ARGV[6]

  local is_over = state == 'closed' and #begun() == 0
  if known[1] and not is_over then return redis.call('HMGET', meta, 'generation', 'kind', 'workers', 'capacity') end
  redis.call('DEL', unpack(KEYS))
  redis.call('HSET', meta, 'generation', generation, 'kind', kind, 'workers', workers, 'capacity', room,
    'limit', first_limit, 'state', 'new')
  return {generation, kind, workers, room}
end

-- Places for new tasks. *ready* counts the pool processes, or threads, that could begin one: what they are about to take
-- needs no place in the queue. Returns the state, the places granted, and the number of other clients.
function operations.reserve()
  local client, wanted, ready, unused = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]

  if not is_mine then return {'gone', 0, 0} end
  give_back_unused(client, unused)
  redis.call('HSET', clients, 'seen:' .. client, now)
  if state ~= 'new' and state ~= 'running' then return {state, 0, 0} end
  local used, others = places(client)
  local at_work = is_running() and math.max(redis.call('HLEN', slots), math.min(limit, ready)) or 0
  local free = capacity + at_work - used
  if others > 0 then wanted = math.min(wanted, math.max(1, math.floor(free / 4))) end
  local granted = math.max(0, math.min(wanted, free))
  if granted > 0 then
    redis.call('HINCRBY', clients, 'places:' .. client, granted)
    redis.call('HINCRBY', meta, 'submitted', granted)
  end
  return {state, granted, others}
end

-- A slot for an envelope that is about to run, or for a task of the client that *owner* names. Returns its number;
-- -1: it has to wait; -2: it must not run, since the pool is closed, or nobody wants it any more.
function operations.begin()
  local member, score, owner, tasks = ARGV[3], tonumber(ARGV[4]), ARGV[5], ARGV[6]

  if not is_mine or state == 'closed' then return -2 end
  if redis.call('HGET', messages, member) == 'withdrawn' then return -2 end
  local mark = redis.call('HGET', slots, member)
  if not mark or not string.find(mark, 'begun', 1, true) then  -- One that has begun before has come back, and goes on.
    local best = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')
    if best[1] and best[1] ~= member then
      local other = tonumber(best[2])
      if other < score or (other == score and best[1] < member) then return -1 end
    end
  end
  local number = mark and string.match(mark, '^%d+') or free_slot()
  if not number then return -1 end
  redis.call('ZREM', waiting, member)
  redis.call('HSET', slots, member, number .. ' begun ' .. now .. ' ' .. (owner == '' and tasks or '@'))
  if owner ~= '' then redis.call('HSET', messages, member, owner) end
  local busy = redis.call('HLEN', slots)
  if busy > tonumber(redis.call('HGET', meta, 'peak') or 0) then redis.call('HSET', meta, 'peak', busy) end
  return tonumber(number)
end

-- Envelopes wait for their slots: (member, score, message) of each. Returns the messages to publish now, or nil: closed.
function operations.park()
  if not is_mine or state == 'closed' then return false end
  for at = 3, #ARGV, 3 do
    local member, score, message = ARGV[at], ARGV[at + 1], ARGV[at + 2]
    wait_for_slot(member, score, message)
  end
  return assign()
end

-- Envelopes that nobody wants any more (member, tasks), and that have not begun. Those in the index are taken out, and are returned;
-- those that are on their way are refused when they arrive. Returns also the messages to publish now.
function operations.withdraw()
  local client = ARGV[3]

  local out = {}
  if not is_mine then return {out, {}} end
  for at = 4, #ARGV, 2 do
    local member, tasks = ARGV[at], ARGV[at + 1]
    local mark = redis.call('HGET', slots, member)
    local is_begun = mark and string.find(mark, 'begun', 1, true)
    local is_here = redis.call('HGET', messages, member) == '@' .. client
    if redis.call('ZREM', waiting, member) == 1 or (is_here and not is_begun) then
      redis.call('HDEL', slots, member)
      redis.call('HDEL', messages, member)
      redis.call('HINCRBY', meta, 'abandoned', tasks)
      give_back(client, tasks)
      out[#out + 1] = member
    elseif not is_begun then
      redis.call('HSET', messages, member, 'withdrawn')
    end
  end
  return {out, assign()}
end

-- An envelope has outcomes for all its items, or never will: its slot is free, and so are the places of its tasks. They
-- are counted as *total*, completed or abandoned, and in *took* by how long they took, "bucket:count" each. *returned* is the mark
-- that the message of the run went back: another run has the slot then, and ends it. What follows
-- the arguments named here are results for the stream.
-- Returns the messages to publish now.
function operations.finish()
  local member, client, total, tasks, failed, seconds, took, ttl, returned =
    ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9], ARGV[10], ARGV[11]

  if not is_mine then return {} end
  if returned ~= '' and redis.call('EXISTS', returned) == 1 then return {} end
  local had_slot = redis.call('HDEL', slots, member) == 1
  redis.call('ZREM', waiting, member)
  redis.call('HDEL', messages, member)
  if state == 'closed' and total == 'completed' and not had_slot then return {} end  -- It was counted by "killed".
  give_back(client, tasks)
  if total == 'completed' or state ~= 'closed' then redis.call('HINCRBY', meta, total, tasks) end
  if failed ~= '0' then redis.call('HINCRBY', meta, 'failed', failed) end
  redis.call('HINCRBYFLOAT', meta, 'busy', seconds)
  for bucket, count in string.gmatch(took, '(%d+):(%d+)') do redis.call('HINCRBY', meta, 'took:' .. bucket, count) end
  if #ARGV > 11 then
    redis.call('RPUSH', results, unpack(ARGV, 12))
    redis.call('EXPIRE', results, ttl)
  end
  return assign()
end

-- Envelopes that were running when their processes were killed: their tasks have failed. Returns of each that was not
-- finished after all: the member, the number of its slot, and for how many seconds it ran.
function operations.killed()
  local found = {}
  if not is_mine then return found end
  for at = 3, #ARGV do
    local mark = redis.call('HGET', slots, ARGV[at]) or ''
    local number, began, tasks = string.match(mark, '^(%d+) begun (%S+) (%d+)$')
    if number then
      local seconds = string.format('%.6f', tonumber(now) - tonumber(began))
      redis.call('HDEL', slots, ARGV[at])
      redis.call('HINCRBY', meta, 'completed', tasks)
      redis.call('HINCRBY', meta, 'failed', tasks)
      redis.call('HINCRBYFLOAT', meta, 'busy', seconds)
      found[#found + 1] = {ARGV[at], tonumber(number), seconds}
    end
  end
  return found
end

-- A client says that it lives, and what it has reserved in vain. Clients that are silent for long have died: their places
-- are free, and what only they could run is dropped. Returns the state, the limit, and the messages to publish now.
function operations.tend()
  local client, unused, silence, ttl = ARGV[3], ARGV[4], tonumber(ARGV[5]), ARGV[6]

  if not is_mine then return {'gone', 0, {}} end
  give_back_unused(client, unused)
  redis.call('HSET', clients, 'seen:' .. client, now)
  local all = redis.call('HGETALL', clients)
  for at = 1, #all, 2 do
    local dead = string.match(all[at], '^seen:(.+)$')
    if dead and tonumber(all[at + 1]) < now - silence then
      redis.call('HDEL', clients, 'seen:' .. dead, 'places:' .. dead)
      local kept = redis.call('HGETALL', messages)
      for each = 1, #kept, 2 do
        if kept[each + 1] == '@' .. dead then
          redis.call('HINCRBY', meta, 'abandoned', redis.call('ZREM', waiting, kept[each]))
          redis.call('HDEL', slots, kept[each])
          redis.call('HDEL', messages, kept[each])
        end
      end
    end
  end
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ttl) end
  return {state, limit, assign()}
end

-- A new state, which never goes back, or a new limit. Closed: what waits is abandoned. Returns the state, the messages
-- to publish now, and the members that run.
function operations.change()
  local client, unused, field, value = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local ranks = {new = 1, running = 2, closing = 3, closed = 4}

  if not is_mine then return {'gone', {}, {}} end
  give_back_unused(client, unused)
  if field == 'limit' then
    limit = tonumber(value)
    redis.call('HSET', meta, 'limit', limit)
  elseif ranks[value] > ranks[state] then
    state = value
    redis.call('HSET', meta, 'state', state)
    redis.call('HSETNX', meta, 'started', now)
    if state ~= 'running' then redis.call('HSET', meta, 'ended', now) end
  end
  local running, tasks = begun()
  if state == 'closed' then
    local used = places('')
    redis.call('HINCRBY', meta, 'abandoned', math.max(0, used - tasks))
    redis.call('DEL', waiting, messages, clients)
  end
  return {state, assign(), running}
end

-- What the pool is, the places that clients have, the envelopes that run, and the time.
function operations.status()
  if not is_mine then return {{}, 0, 0, now} end
  local used = places('')
  return {redis.call('HGETALL', meta), used, #begun(), now}
end

return operations[operation]()
