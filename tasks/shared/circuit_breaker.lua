-- The rules of BreakerRules (circuit_breaker.py) once more, so that each change of state is one step.
local circuit = KEYS[1]
local trial_poll = 1  -- Seconds until one asks again that is refused while another is tried.
local operation, kept, in_use, timeout = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6

local got = redis.call('HMGET', circuit, 'state', 'failures', 'successes', 'failed_at', 'trials', 'tried_at')
local state = got[1] or 'closed'
local failures, successes, failed_at = tonumber(got[2] or 0), tonumber(got[3] or 0), tonumber(got[4] or 0)
local trials, tried_at = tonumber(got[5] or 0), tonumber(got[6] or 0)

local function exact(number)
  return string.format('%.6f', number)
end

local function remember(...)
  redis.call('HSET', circuit, ...)
  redis.call('EXPIRE', circuit, kept + math.ceil(timeout))
end

local function save()
  remember('state', state, 'failures', failures, 'successes', successes, 'failed_at', exact(failed_at),
    'trials', trials, 'tried_at', exact(tried_at))
end

local operations = {}

-- {1, '', change of state} if the call may run; {0, seconds until it may be tried}; {-1, the rules in use}.
function operations.admit()
  local limit, rules = tonumber(ARGV[5]), ARGV[6]
  local use = redis.call('HMGET', circuit, 'rules', 'used')
  if use[1] and use[1] ~= rules and now - tonumber(use[2]) < in_use then return {-1, use[1]} end
  remember('rules', rules, 'used', exact(now))
  if state == 'closed' then return {1, '', ''} end
  local change = ''
  if state == 'open' then
    if now - failed_at < timeout then return {0, exact(failed_at + timeout - now)} end
    state, successes, trials, change = 'half_open', 0, 0, 'half_open'
  end
  if now - tried_at >= timeout then trials = 0 end
  local may_run = limit < 0 or trials < limit
  if may_run then trials, tried_at = trials + 1, now end
  save()
  if may_run then return {1, '', change} end
  return {0, exact(math.min(tried_at + timeout - now, trial_poll))}
end

-- The others return the state that the circuit has changed to, or ''.

function operations.failed()
  local failure_threshold = tonumber(ARGV[5])
  local before = state
  failures = failures + 1
  if state ~= 'closed' or failures >= failure_threshold then state = 'open' end
  failed_at, successes, trials = now, 0, 0
  save()
  return state == before and '' or state
end

function operations.succeeded()
  local success_threshold, before = tonumber(ARGV[6]), state
  if state == 'closed' then
    if failures == 0 then return '' end
    failures = 0
  elseif state == 'half_open' then
    successes, trials = successes + 1, math.max(0, trials - 1)
    if successes >= success_threshold then state, failures, successes, trials = 'closed', 0, 0, 0 end
  end
  save()
  return state == before and '' or state
end

function operations.abandoned()
  trials = math.max(0, trials - 1)
  save()
  return ''
end

function operations.read()
  return got
end

return operations[operation]()
