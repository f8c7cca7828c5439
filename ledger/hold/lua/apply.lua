-- Brings the counters from offset ARGV[2] to ARGV[3]. ARGV[1]: the epoch that the settled sums belong to. ARGV[4]: per account
-- its name (zero-terminated), then granted, charged and settled as int64. Returns {done, split}; done -1: no counters here.
local AT_PLACE, REST_PLACE = 41, 25 -- bytes of a record at which its at, and what follows its settled, begin
local EMPTY = struct.pack('<I4i4I4i4I4i4I4i4I4i4I4i4', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, LIMB - 1, -1)
local c = redis.call('HMGET', counters_key, 'epoch', 'floor', 'done', 'run')
if not c[1] or c[4] ~= server() then return { -1, 0 } end
local from, to, done = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(c[3])
local settles = c[1] == ARGV[1]

local function raise_floor()
  if to > tonumber(c[2]) then redis.call('HSET', counters_key, 'floor', ARGV[3]) end
end

if done ~= from then
  raise_floor()
  return { done, 0 }
end

-- Ten thousand accounts at once must not keep others waiting for long: no table per account from here on.
local names, places, pos = {}, {}, 1 -- the accounts, and where the three sums of each begin
local packed, size = ARGV[4], #ARGV[4]
while pos <= size do
  local count = #names + 1
  names[count], pos = struct.unpack('<s', packed, pos)
  places[count] = pos
  pos = pos + 24
end

local values, split = {}, nil
for first = 1, #names, CHUNK do
  local page = redis.call('HMGET', accounts_key, unpack(names, first, math.min(first + CHUNK - 1, #names)))
  for n, value in ipairs(page) do
    values[first + n - 1] = value
    if value then
      local lo, hi = struct.unpack('<I4i4', value, AT_PLACE)
      local at = number(lo, hi)
      if at > from and at < to and (not split or at < split) then split = at end
    end
  end
end
if split then return { done, split } end

local function plus(lo, hi, morelo, morehi)
  lo, hi = lo + morelo, hi + morehi
  if lo >= LIMB then lo, hi = lo - LIMB, hi + 1 elseif lo < 0 then lo, hi = lo + LIMB, hi - 1 end
  return lo, hi
end

local batch, count = {}, 0
for n, name in ipairs(names) do
  local value = values[n]
  local glo, ghi, clo, chi, slo, shi = struct.unpack('<I4i4I4i4I4i4', packed, places[n])
  local unsettles = settles and (slo ~= 0 or shi ~= 0)
  local lo, hi = LIMB - 1, -1
  if value then lo, hi = struct.unpack('<I4i4', value, AT_PLACE) end
  local counts = hi >= 0 and number(lo, hi) <= from
  if counts or unsettles then
    value = value or EMPTY
    local a, b, d, e, f, g = struct.unpack('<I4i4I4i4I4i4', value)
    if counts then
      a, b = plus(a, b, glo, ghi)
      d, e = plus(d, e, clo, chi)
    end
    if unsettles then f, g = plus(f, g, -slo, -shi) end
    batch[count + 1] = name
    batch[count + 2] = struct.pack('<I4i4I4i4I4i4', a, b, d, e, f, g) .. string.sub(value, REST_PLACE)
    count = count + 2
    if count == CHUNK then
      redis.call('HSET', accounts_key, unpack(batch))
      batch, count = {}, 0
    end
  end
end
if count > 0 then redis.call('HSET', accounts_key, unpack(batch)) end
raise_floor()
redis.call('HSET', counters_key, 'done', ARGV[3])
return { to, 0 }
