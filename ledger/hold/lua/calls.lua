-- Reserves, extensions and releases, in order. KEYS: one per partition; in a cluster there is one. ARGV: per partition the
-- number of its calls, then one packed call each. Returns one reply per call, in order of ARGV:
-- {outcome, amount} or {outcome, left, place of the account in the way} or {outcome, mask of accounts to load}.
-- What is looked up for one call is kept for the next ones: under load this script is most of what the server does.
local GRANTED_REPLY, REFUSED, BUSY, NEED_LOAD, REBUILDING, GONE = 0, 1, 2, 3, 4, 5
local this_server, c, flags

local function admits(epoch)
  if c[1] ~= epoch or c[2] ~= '1' then return false end
  this_server = this_server or server()
  return c[3] == this_server
end

local function flags_of(incarnation)
  local f = flags[incarnation]
  if f == nil then
    f = redis.call('HGET', incarnations_key, incarnation)
    flags[incarnation] = f
  end
  return f
end

-- Reads both accounts of a hold at once.
local function read(user, token)
  if token == '' or records[user] or records[token] then return end
  local values = redis.call('HMGET', accounts_key, user, token)
  records[user], records[token] = decode(values[1]), decode(values[2])
end

local function not_loaded(user, token)
  local mask = loaded(record(user)) and 0 or 1
  if token ~= '' and not loaded(record(token)) then mask = mask + 2 end
  return mask
end

-- Looks at one account: returns a refusal, or what the amount comes down to and whether the account is busy.
local function weigh(place, field, least, want, amount)
  local rec = record(field)
  local left = available(rec)
  if left >= want then return nil, amount end
  local idle = rec[OPEN] == 0 and rec[OPEN + 1] == 0
  if idle and left < least then return { REFUSED, left, place } end
  return nil, math.min(amount, left), not idle and { BUSY, left, place } or nil
end

local function reserve(id, least, want, incarnation, epoch, user, token)
  if not admits(epoch) then return { REBUILDING } end
  local f = flags_of(incarnation)
  if has(f, 'd') then return { GONE } end
  read(user, token)
  local mask = not_loaded(user, token)
  if mask > 0 then return { NEED_LOAD, mask } end
  local known = has(f, 'm') and redis.call('HGET', holds_key(incarnation), id)
  if known then return { GRANTED_REPLY, number(struct.unpack('<I4i4', known)) } end
  local refusal, amount, busy = weigh(1, user, least, want, want)
  if refusal then return refusal end
  if token ~= '' then
    local token_busy
    refusal, amount, token_busy = weigh(2, token, least, want, amount)
    if refusal then return refusal end
    busy = busy or token_busy
  end
  if busy then return busy end
  if not has(f, 'm') then flags[incarnation] = join(incarnation, f) end
  local lo, hi = limbs(amount)
  hold(incarnation, id, lo, hi, user, token)
  return { GRANTED_REPLY, amount }
end

local function extend(id, to, incarnation, epoch)
  if not admits(epoch) then return { REBUILDING } end
  local value = has(flags_of(incarnation), 'm') and redis.call('HGET', holds_key(incarnation), id)
  if not value then return { GONE } end
  local lo, hi, user, token = struct.unpack('<I4i4ss', value)
  local amount = number(lo, hi)
  if to <= amount then return { GRANTED_REPLY, amount } end
  read(user, token)
  local mask = not_loaded(user, token)
  if mask > 0 then return { NEED_LOAD, mask, 0, user, token } end
  local more = to - amount
  local left = available(record(user))
  if left < more then return { REFUSED, left, 1, user, token } end
  local morelo, morehi = limbs(more)
  if token ~= '' then
    left = available(record(token))
    if left < more then return { REFUSED, left, 2, user, token } end
    add(change(token), HELD, morelo, morehi)
  end
  add(change(user), HELD, morelo, morehi)
  lo, hi = limbs(to)
  redis.call('HSET', holds_key(incarnation), id, struct.pack('<I4i4ss', lo, hi, user, token))
  return { GRANTED_REPLY, to }
end

local function settle(id, lo, hi, incarnation, epoch)
  if c[1] ~= epoch or not has(flags_of(incarnation), 'm') then return end
  local user, token = release(incarnation, id)
  if not user then return end
  add(change(user), SETTLED, lo, hi)
  if token ~= '' then add(change(token), SETTLED, lo, hi) end
end

local replies, arg, done = {}, 1, { GRANTED_REPLY, 0 }
for _, key in ipairs(KEYS) do
  enter(key)
  c, flags = redis.call('HMGET', counters_key, 'epoch', 'open', 'run'), {}
  local last = arg + tonumber(ARGV[arg])
  while arg < last do
    arg = arg + 1
    local kind, id, xlo, xhi, ylo, yhi, incarnation, epoch, user, token = struct.unpack('<c1c16I4i4I4i4ssss', ARGV[arg])
    local reply = done
    if kind == 'R' then
      reply = reserve(id, number(xlo, xhi), number(ylo, yhi), incarnation, epoch, user, token)
    elseif kind == 'E' then
      reply = extend(id, number(xlo, xhi), incarnation, epoch)
    elseif kind == 'S' then
      settle(id, xlo, xhi, incarnation, epoch)
    elseif c[1] == epoch and has(flags_of(incarnation), 'm') then
      release(incarnation, id)
    end
    replies[#replies + 1] = reply
  end
  arg = last + 1
  write()
end
return replies
