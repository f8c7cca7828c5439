-- ARGV: epoch, incarnation, then per hold: id, packed amount and accounts. Accepted while the epoch is rebuilding.
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'run')
if c[1] ~= ARGV[1] or c[2] ~= '0' or c[3] ~= server() then return { 0 } end
local flags = redis.call('HGET', incarnations_key, ARGV[2])
if has(flags, 'd') then return { 0 } end
if not has(flags, 'm') then join(ARGV[2], flags) end
for n = 3, #ARGV, 2 do
  if redis.call('HEXISTS', holds_key(ARGV[2]), ARGV[n]) == 0 then
    local lo, hi, user, token = struct.unpack('<I4i4ss', ARGV[n + 1])
    hold(ARGV[2], ARGV[n], lo, hi, user, token)
  end
end
write()
return { 1 }
