-- Installs balances of one snapshot. ARGV: epoch, offset, then accounts and packed (granted, charged) in turn.
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'floor', 'run')
if c[1] ~= ARGV[1] or c[2] ~= '1' or tonumber(ARGV[2]) < tonumber(c[3]) or c[4] ~= server() then return { 0 } end
local lo, hi = limbs(tonumber(ARGV[2]))
for n = 3, #ARGV, 2 do
  local rec = record(ARGV[n])
  if not loaded(rec) then
    change(ARGV[n])
    rec[GRANTED], rec[GRANTED + 1], rec[CHARGED], rec[CHARGED + 1] = struct.unpack('<I4i4I4i4', ARGV[n + 1])
    rec[AT], rec[AT + 1] = lo, hi
  end
end
write()
return { 1 }
