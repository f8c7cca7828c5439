-- Reserves, extensions and releases, in order. KEYS: one per partition; in a cluster there is one. ARGV: the calls of each key, packed in
-- groups of one incarnation and epoch (both zero-terminated) that name no hold twice: the number of calls and of accounts (I2
-- each), the hold ids of the calls (16 bytes each), their kinds (a byte each), the accounts that reserves name (zero-terminated),
-- and per call
--   R: min and want (doubles), the places of user and token among the accounts (I2 each, token 0 if it is not held)
--   E: the total (a double)    S: the charge (int64)    V: nothing
-- Returns one string, per call in order: a zero for what was done as asked, or else 1 + outcome, then a number (a double: amount,
-- what is left, or mask of accounts to load), the place of the account in the way, user and token (zero-terminated).
-- Under load this script is most of what the server does, and nearly all of its time is Lua's. So a group reads its holds and
-- accounts in one command each and writes them so, tables that grow are used again, and what is added to a record is counted
-- in doubles: amounts up to SMALL, of which no trip has enough to reach 2^53. A larger one is added by itself.
local GRANTED_REPLY, REFUSED, BUSY, NEED_LOAD, REBUILDING, GONE = 0, 1, 2, 3, 4, 5
local SMALL = 17592186044416 -- 2^44; MaxTrip is 2^8
-- What a record has here beside its limbs: what is left, what this trip adds, and whether the limbs have changed.
local LEFT, MORE_HELD, MORE_OPEN, MORE_SETTLED, FOLDED = 13, 14, 15, 16, 17
local R, E, S = 82, 69, 83

local this_server, c
local incarnation, flags, admitted -- of the group at hand
local names, known = {}, 0 -- the accounts that were read of this partition
local kept, keeps = {}, 0 -- holds to be written: ids and values in turn
local ended, ends = {}, 0 -- ids of holds to be taken out
local asked, special = 0, nil -- calls answered; the answers that are more than a zero, by number

local function answer(outcome, n, place, user, token)
  return struct.pack('<BdBss', outcome + 1, n or 0, place or 0, user or '', token or '')
end

local function admits(epoch)
  if admitted == nil then
    admitted = c[1] == epoch and c[2] == '1'
    if admitted then
      this_server = this_server or server()
      admitted = c[3] == this_server
    end
  end
  return admitted
end

local function begin(rec)
  rec[LEFT], rec[MORE_HELD], rec[MORE_OPEN], rec[MORE_SETTLED] = available(rec), 0, 0, 0
  return rec
end

-- Reads the accounts among fields that were not read before.
local function read(fields)
  local first = known
  for _, field in ipairs(fields) do
    if field ~= '' and records[field] == nil then
      known = known + 1
      names[known], records[field] = field, false
    end
  end
  if known == first then return end
  for n, value in ipairs(redis.call('HMGET', accounts_key, unpack(names, first + 1, known))) do
    local a, b, d, e, f, g, h, i, j, k, l, m = 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, LIMB - 1, -1
    if value then a, b, d, e, f, g, h, i, j, k, l, m = struct.unpack(RECORD, value) end
    records[names[first + n]] = begin({ a, b, d, e, f, g, h, i, j, k, l, m, 0, 0, 0, 0, false })
  end
end

-- Brings the limbs up to date, and with them what is left: near the bounds at which that is cut off it is wrong in between.
local function fold(rec)
  if rec[MORE_HELD] == 0 and rec[MORE_OPEN] == 0 and rec[MORE_SETTLED] == 0 then return rec end
  add(rec, HELD, limbs(rec[MORE_HELD]))
  add(rec, OPEN, limbs(rec[MORE_OPEN]))
  add(rec, SETTLED, limbs(rec[MORE_SETTLED]))
  rec[FOLDED] = true
  return begin(rec)
end

-- Adds a large amount.
local function add_now(rec, at, lo, hi)
  add(fold(rec), at, lo, hi)
  rec[FOLDED] = true
  begin(rec)
end

-- Adds to what is held and settled of an account, and to its open holds.
local function plus(rec, more, open, settled)
  if more > SMALL or more < -SMALL then
    add_now(rec, HELD, limbs(more))
    more = 0
  end
  rec[LEFT], rec[MORE_HELD] = rec[LEFT] - more - settled, rec[MORE_HELD] + more
  rec[MORE_OPEN], rec[MORE_SETTLED] = rec[MORE_OPEN] + open, rec[MORE_SETTLED] + settled
end

local function keep(id, amount, user, token)
  local lo, hi = limbs(amount)
  kept[keeps + 1], kept[keeps + 2] = id, struct.pack('<I4i4ss', lo, hi, user, token)
  keeps = keeps + 2
end

local function not_loaded(user, token)
  local mask = loaded(records[user]) and 0 or 1
  if token ~= '' and not loaded(records[token]) then mask = mask + 2 end
  return mask
end

local function pays(rec, amount)
  if amount > SMALL or rec[LEFT] < amount then fold(rec) end
  return rec[LEFT] >= amount
end

-- Looks at an account that cannot pay what is wanted: returns a refusal, or what the amount comes down to and whether it is busy.
local function weigh(place, rec, least, amount)
  local left = rec[LEFT]
  local idle = rec[OPEN] + rec[OPEN + 1] * LIMB + rec[MORE_OPEN] == 0
  if idle and left < least then return answer(REFUSED, left, place) end
  return nil, math.min(amount, left), not idle and answer(BUSY, left, place) or nil
end

-- Returns nothing if the hold is what was asked for, as extend does.
local function reserve(id, value, least, want, user, token)
  if has(flags, 'd') then return answer(GONE) end
  local mask = not_loaded(user, token)
  if mask > 0 then return answer(NEED_LOAD, mask) end
  if value then return answer(GRANTED_REPLY, number(struct.unpack('<I4i4', value))) end
  local payer, copayer, amount = records[user], records[token], want
  local refusal, busy, token_busy
  if not pays(payer, want) then
    refusal, amount, busy = weigh(1, payer, least, amount)
    if refusal then return refusal end
  end
  if copayer and not pays(copayer, want) then
    refusal, amount, token_busy = weigh(2, copayer, least, amount)
    if refusal then return refusal end
    busy = busy or token_busy
  end
  if busy then return busy end
  if not has(flags, 'm') then flags = join(incarnation, flags) end
  keep(id, amount, user, token)
  plus(payer, amount, 1, 0)
  if copayer then plus(copayer, amount, 1, 0) end
  if amount < want then return answer(GRANTED_REPLY, amount) end
end

local function extend(id, value, to)
  if not value then return answer(GONE) end
  local lo, hi, user, token = struct.unpack('<I4i4ss', value)
  local amount = number(lo, hi)
  if to <= amount then return answer(GRANTED_REPLY, amount) end
  read({ user, token })
  local mask = not_loaded(user, token)
  if mask > 0 then return answer(NEED_LOAD, mask, 0, user, token) end
  local more, payer, copayer = to - amount, records[user], records[token]
  if not pays(payer, more) then return answer(REFUSED, payer[LEFT], 1, user, token) end
  if copayer and not pays(copayer, more) then return answer(REFUSED, copayer[LEFT], 2, user, token) end
  keep(id, to, user, token)
  plus(payer, more, 0, 0)
  if copayer then plus(copayer, more, 0, 0) end
end

local function replace(rec, amount, lo, hi)
  local charge = number(lo, hi)
  if charge <= SMALL then return plus(rec, -amount, -1, charge) end
  plus(rec, -amount, -1, 0)
  add_now(rec, SETTLED, lo, hi)
end

-- Takes a hold out of its accounts and puts a charge in its place.
local function let_go(id, value, chargelo, chargehi)
  local lo, hi, user, token = struct.unpack('<I4i4ss', value)
  if not records[user] or token ~= '' and not records[token] then read({ user, token }) end
  local amount = number(lo, hi)
  replace(records[user], amount, chargelo, chargehi)
  if token ~= '' then replace(records[token], amount, chargelo, chargehi) end
  ends = ends + 1
  ended[ends] = id
end

-- Takes out first: a server without memory refuses what adds, until a script has changed something.
local function write_holds()
  if ends > 0 then redis.call('HDEL', holds_key(incarnation), unpack(ended, 1, ends)) end
  if keeps > 0 then redis.call('HSET', holds_key(incarnation), unpack(kept, 1, keeps)) end
  ends, keeps = 0, 0
end

local function write_accounts()
  for place = 1, known do
    local rec = records[names[place]]
    if rec[FOLDED] or rec[MORE_HELD] ~= 0 or rec[MORE_OPEN] ~= 0 or rec[MORE_SETTLED] ~= 0 then
      kept[keeps + 1], kept[keeps + 2] = names[place], encode(fold(rec))
      keeps = keeps + 2
    end
  end
  if keeps > 0 then redis.call('HSET', accounts_key, unpack(kept, 1, keeps)) end
  keeps = 0
end

local function run_group(packed, pos)
  local epoch, calls, accounts
  incarnation, epoch, calls, accounts, pos = struct.unpack('<ssI2I2', packed, pos)
  local ids = { struct.unpack(string.rep('c16', calls), packed, pos) }
  local kinds = { string.byte(packed, ids[calls + 1], ids[calls + 1] + calls - 1) }
  local fields = { struct.unpack(string.rep('s', accounts), packed, ids[calls + 1] + calls) }
  pos, fields[accounts + 1], fields[0] = fields[accounts + 1], nil, ''
  flags, admitted = redis.call('HGET', incarnations_key, incarnation), nil
  local values = {}
  if c[1] == epoch then
    if has(flags, 'm') then values = redis.call('HMGET', holds_key(incarnation), unpack(ids, 1, calls)) end
    read(fields)
  end
  local x, y, user, token, reply
  for n = 1, calls do
    local kind = kinds[n]
    if kind == R then
      x, y, user, token, pos = struct.unpack('<ddI2I2', packed, pos)
      if admits(epoch) then reply = reserve(ids[n], values[n], x, y, fields[user], fields[token]) else reply = answer(REBUILDING) end
    elseif kind == E then
      x, pos = struct.unpack('<d', packed, pos)
      if admits(epoch) then reply = extend(ids[n], values[n], x) else reply = answer(REBUILDING) end
    else
      x, y, reply = 0, 0, nil
      if kind == S then x, y, pos = struct.unpack('<I4i4', packed, pos) end
      if values[n] then let_go(ids[n], values[n], x, y) end
    end
    if reply then
      special = special or {}
      special[asked + n] = reply
    end
  end
  asked = asked + calls
  write_holds()
  return pos
end

for n, key in ipairs(KEYS) do
  enter(key)
  c, known = redis.call('HMGET', counters_key, 'epoch', 'open', 'run'), 0
  local packed, pos = ARGV[n], 1
  while pos <= #packed do pos = run_group(packed, pos) end
  write_accounts()
end
if not special then return string.rep('\0', asked) end
for n = 1, asked do special[n] = special[n] or '\0' end
return table.concat(special)
