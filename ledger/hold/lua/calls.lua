-- Reserves, extensions and releases of one partition, in order. ARGV: one packed call each. Returns one reply each:
-- {outcome, amount} or {outcome, left, place of the account in the way} or {outcome, mask of accounts to load}.
local GRANTED_REPLY, REFUSED, BUSY, NEED_LOAD, REBUILDING, GONE = 0, 1, 2, 3, 4, 5
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'run')
local here

local function admits(epoch)
  if c[1] ~= epoch or c[2] ~= '1' then return false end
  if here == nil then here = c[3] == server() end
  return here
end

local flags = {}

local function flags_of(incarnation)
  if flags[incarnation] == nil then flags[incarnation] = redis.call('HGET', incarnations_key, incarnation) end
  return flags[incarnation]
end

local function not_loaded(fields)
  local mask = 0
  for place, field in ipairs(fields) do
    if not loaded(record(field)) then mask = mask + place end
  end
  return mask
end

local function reserve(call)
  if not admits(call.epoch) then return { REBUILDING } end
  local f = flags_of(call.incarnation)
  if has(f, 'd') then return { GONE } end
  local fields = { call.user }
  if call.token ~= '' then fields[2] = call.token end
  local mask = not_loaded(fields)
  if mask > 0 then return { NEED_LOAD, mask } end
  local known = has(f, 'm') and redis.call('HGET', holds_key(call.incarnation), call.id)
  if known then
    local lo, hi = struct.unpack('<I4i4', known)
    return { GRANTED_REPLY, number(lo, hi) }
  end
  local least, want = number(call.xlo, call.xhi), number(call.ylo, call.yhi)
  local amount, busy = want, nil
  for place, field in ipairs(fields) do
    local rec = record(field)
    local left, holds = available(rec), number(rec[OPEN], rec[OPEN + 1])
    if left < least and holds == 0 then return { REFUSED, left, place } end
    if left < want and holds > 0 then busy = busy or { BUSY, left, place } end
    if left < amount then amount = left end
  end
  if busy then return busy end
  if not has(f, 'm') then flags[call.incarnation] = join(call.incarnation, f) end
  local lo, hi = limbs(amount)
  hold(call.incarnation, call.id, lo, hi, call.user, call.token)
  return { GRANTED_REPLY, amount }
end

local function extend(call)
  if not admits(call.epoch) then return { REBUILDING } end
  local value = has(flags_of(call.incarnation), 'm') and redis.call('HGET', holds_key(call.incarnation), call.id)
  if not value then return { GONE } end
  local lo, hi, user, token = struct.unpack('<I4i4ss', value)
  local amount, to = number(lo, hi), number(call.xlo, call.xhi)
  if to <= amount then return { GRANTED_REPLY, amount, 0, user, token } end
  local fields = { user }
  if token ~= '' then fields[2] = token end
  local mask = not_loaded(fields)
  if mask > 0 then return { NEED_LOAD, mask, 0, user, token } end
  for place, field in ipairs(fields) do
    local left = available(record(field))
    if left < to - amount then return { REFUSED, left, place, user, token } end
  end
  local morelo, morehi = limbs(to - amount)
  for _, field in ipairs(fields) do add(change(field), HELD, morelo, morehi) end
  redis.call('HSET', holds_key(call.incarnation), call.id, struct.pack('<I4i4ss', call.xlo, call.xhi, user, token))
  return { GRANTED_REPLY, to, 0, user, token }
end

local function finish(call, settle)
  if c[1] ~= call.epoch or not has(flags_of(call.incarnation), 'm') then return { GRANTED_REPLY } end
  local fields = release(call.incarnation, call.id)
  if fields and settle then
    for _, field in ipairs(fields) do add(change(field), SETTLED, call.xlo, call.xhi) end
  end
  return { GRANTED_REPLY }
end

local replies = {}
for n, packed in ipairs(ARGV) do
  local call, kind = {}, nil
  kind, call.id, call.xlo, call.xhi, call.ylo, call.yhi, call.incarnation, call.epoch, call.user, call.token =
    struct.unpack('<c1c16I4i4I4i4ssss', packed)
  if kind == 'R' then
    replies[n] = reserve(call)
  elseif kind == 'E' then
    replies[n] = extend(call)
  else
    replies[n] = finish(call, kind == 'S')
  end
end
write()
return replies
