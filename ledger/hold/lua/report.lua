-- ARGV: epoch, then incarnations that have re-asserted and shipped all of this partition.
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'run')
if c[1] ~= ARGV[1] or c[2] ~= '0' or c[3] ~= server() then return { 0 } end
for n = 2, #ARGV do
  local flags = redis.call('HGET', incarnations_key, ARGV[n]) or ''
  if not has(flags, 'r') then redis.call('HSET', incarnations_key, ARGV[n], flags .. 'r') end
end
return { 1 }
