-- Releases every hold of an incarnation and leaves a tombstone until the next epoch. ARGV: incarnation.
local c = redis.call('HMGET', counters_key, 'epoch', 'run')
if not c[1] or c[2] ~= server() then return { 0 } end
local flags = redis.call('HGET', incarnations_key, ARGV[1])
if has(flags, 'd') then return { 1 } end
if has(flags, 'm') then
  for _, id in ipairs(redis.call('HKEYS', holds_key(ARGV[1]))) do release(ARGV[1], id) end
end
redis.call('HSET', incarnations_key, ARGV[1], (flags or '') .. 'd')
write()
return { 1 }
