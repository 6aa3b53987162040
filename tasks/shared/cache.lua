-- value: a sealed value. work: the ticket that computes one now, as a lease. waited: there while others wait for it.
local value, work, waited = unpack(KEYS)
local operation, lease_ms, outcomes, ticket = ARGV[1], ARGV[4], ARGV[5], ARGV[6]
local operations = {}

function operations.get()
  return redis.call('GET', value)
end

function operations.set()
  local sealed, ttl_ms = ARGV[7], ARGV[8]
  redis.call('SET', value, sealed, 'PX', ttl_ms)
end

function operations.ask()
  local waited_for = ARGV[7]
  local found = redis.call('GET', value)
  if found then return {'value', found} end
  if waited_for ~= '' then
    local outcome = redis.call('GET', outcomes .. waited_for)
    if outcome then return {'outcome', outcome} end
  end
  local owner = redis.call('GET', work)
  if not owner or owner == ticket then
    redis.call('SET', work, ticket, 'PX', lease_ms)
    return {'compute', ticket}
  end
  redis.call('SET', waited, '1', 'PX', lease_ms)
  return {'wait', owner}
end

function operations.renew()
  if redis.call('GET', work) ~= ticket then return 0 end
  redis.call('PEXPIRE', waited, lease_ms)
  return redis.call('PEXPIRE', work, lease_ms)
end

-- Nothing is kept of a computation that is no longer this ticket's. An empty value or outcome is none.
function operations.finish()
  local sealed, ttl_ms, outcome, outcome_ms = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
  if redis.call('GET', work) ~= ticket then return 0 end
  if sealed ~= '' then redis.call('SET', value, sealed, 'PX', ttl_ms) end
  if outcome ~= '' and redis.call('EXISTS', waited) == 1 then
    redis.call('SET', outcomes .. ticket, outcome, 'PX', outcome_ms)
  end
  return redis.call('DEL', work, waited)
end

return operations[operation]()
