-- Brings the counters from offset ARGV[2] to ARGV[3]. ARGV[1]: the epoch that the settled sums belong to. ARGV[4]: per account
-- its name (zero-terminated), then granted, charged and settled as int64. Returns {done, split}; done -1: no counters here.
local SUM = '<sI4i4I4i4I4i4'
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

local names, sums, pos = {}, {}, 1
while pos <= #ARGV[4] do
  local sum = { struct.unpack(SUM, ARGV[4], pos) }
  names[#names + 1], sums[#sums + 1], pos = sum[1], sum, sum[8]
end

local split
for first = 1, #names, CHUNK do
  local last = math.min(first + CHUNK - 1, #names)
  local values = redis.call('HMGET', accounts_key, unpack(names, first, last))
  for n = first, last do
    local value = values[n - first + 1]
    local rec = decode(value)
    local at = number(rec[AT], rec[AT + 1])
    records[names[n]] = rec
    if at > from and at < to and (not split or at < split) then split = at end
  end
end
if split then return { done, split } end

for n, name in ipairs(names) do
  local sum, rec = sums[n], records[name]
  if loaded(rec) and number(rec[AT], rec[AT + 1]) <= from then
    dirty[name] = true
    add(rec, GRANTED, sum[2], sum[3])
    add(rec, CHARGED, sum[4], sum[5])
  end
  if settles and (sum[6] ~= 0 or sum[7] ~= 0) then
    dirty[name] = true
    subtract(rec, SETTLED, sum[6], sum[7])
  end
end
write()
raise_floor()
redis.call('HSET', counters_key, 'done', ARGV[3])
return { to, 0 }
