-- Prepended to every script. KEYS[1] is PREFIX{pN}:c of a partition; its other keys share the hash tag and are derived.
--   c  hash      epoch, open (0/1), floor, done, run (the server's run_id when the epoch began)
--   a  hash      "u7" or "t9" -> one RECORD: six little-endian int64: granted, charged, settled, held, open holds,
--                at (the offset at which it was loaded, -1 until then)
--   i  hash      incarnation -> flags: m member, r reported, d dropped
--   h:INCARNATION  hash  hold id (16 bytes) -> amount (int64), user account, token account ("" if not held)
-- Lua computes in doubles. Balances are kept as two limbs of 32 bits, so that they stay exact int64 (L8); what is compared is
-- at most 2^53 on one side, where rounding the other side cannot turn the comparison.
local base, counters_key, accounts_key, incarnations_key
-- The records of the partition at hand: read once, written once.
local records, dirty

local function enter(key)
  base = string.sub(key, 1, -2)
  counters_key, accounts_key, incarnations_key = key, base .. 'a', base .. 'i'
  records, dirty = {}, {}
end

enter(KEYS[1])

local LIMB = 4294967296
local MAX_UNITS = 9007199254740991
local RECORD = '<I4i4I4i4I4i4I4i4I4i4I4i4'
local GRANTED, CHARGED, SETTLED, HELD, OPEN, AT = 1, 3, 5, 7, 9, 11
local CHUNK = 500 -- values passed to one command: unpack has a limit of about 8,000

local function has(flags, flag) return flags and string.find(flags, flag, 1, true) ~= nil end
local function holds_key(incarnation) return base .. 'h:' .. incarnation end

-- The run_id of the server that runs this script, read here so that no connection, failover or redirection comes between.
local function server()
  local info = redis.call('INFO', 'server')
  local _, stop = string.find(info, 'run_id:', 1, true)
  return string.match(info, '^%x+', stop + 1)
end

local function put(rec, at, lo, hi)
  if lo >= LIMB then lo, hi = lo - LIMB, hi + 1 elseif lo < 0 then lo, hi = lo + LIMB, hi - 1 end
  rec[at], rec[at + 1] = lo, hi
end

local function add(rec, at, lo, hi) put(rec, at, rec[at] + lo, rec[at + 1] + hi) end
local function subtract(rec, at, lo, hi) put(rec, at, rec[at] - lo, rec[at + 1] - hi) end
local function number(lo, hi) return hi * LIMB + lo end
local function limbs(n) return n % LIMB, math.floor(n / LIMB) end

local function decode(value)
  if not value then return { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, LIMB - 1, -1 } end
  return { struct.unpack(RECORD, value) }
end

local function encode(rec) return struct.pack(RECORD, unpack(rec, 1, 12)) end
local function loaded(rec) return rec[AT + 1] >= 0 end

local function available(rec)
  local left = number(rec[GRANTED] - rec[CHARGED] - rec[SETTLED] - rec[HELD],
    rec[GRANTED + 1] - rec[CHARGED + 1] - rec[SETTLED + 1] - rec[HELD + 1])
  return math.max(-MAX_UNITS, math.min(MAX_UNITS, left))
end

local function record(field)
  local rec = records[field]
  if not rec then
    rec = decode(redis.call('HGET', accounts_key, field))
    records[field] = rec
  end
  return rec
end

local function change(field)
  dirty[field] = true
  return record(field)
end

local function write()
  local batch = {}
  for field in pairs(dirty) do
    batch[#batch + 1] = field
    batch[#batch + 1] = encode(records[field])
    if #batch >= CHUNK then
      redis.call('HSET', accounts_key, unpack(batch))
      batch = {}
    end
  end
  if #batch > 0 then redis.call('HSET', accounts_key, unpack(batch)) end
end

-- A hold of an incarnation that is no member of this epoch cannot be there: whatever its key holds was left behind.
local function join(incarnation, flags)
  flags = (flags or '') .. 'm'
  redis.call('UNLINK', holds_key(incarnation))
  redis.call('HSET', incarnations_key, incarnation, flags)
  return flags
end

local function take(field, lo, hi)
  local rec = change(field)
  add(rec, HELD, lo, hi)
  add(rec, OPEN, 1, 0)
end

local function hold(incarnation, id, lo, hi, user, token)
  redis.call('HSET', holds_key(incarnation), id, struct.pack('<I4i4ss', lo, hi, user, token))
  take(user, lo, hi)
  if token ~= '' then take(token, lo, hi) end
end

local function give_back(field, lo, hi)
  local rec = change(field)
  subtract(rec, HELD, lo, hi)
  subtract(rec, OPEN, 1, 0)
end

-- Takes a hold out of its accounts; returns them, or nothing if there is no such hold.
local function release(incarnation, id)
  local key = holds_key(incarnation)
  local value = redis.call('HGET', key, id)
  if not value then return end
  redis.call('HDEL', key, id)
  local lo, hi, user, token = struct.unpack('<I4i4ss', value)
  give_back(user, lo, hi)
  if token ~= '' then give_back(token, lo, hi) end
  return user, token
end
