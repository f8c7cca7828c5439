-- A new epoch, empty and rebuilding. ARGV: epoch, offset, then incarnations that were given up. Only a higher number is accepted.
local epoch = redis.call('HGET', counters_key, 'epoch')
if epoch and tonumber(epoch) >= tonumber(ARGV[1]) then return { 0 } end
for _, incarnation in ipairs(redis.call('HKEYS', incarnations_key)) do redis.call('UNLINK', holds_key(incarnation)) end
redis.call('UNLINK', accounts_key, incarnations_key)
redis.call('HSET', counters_key, 'epoch', ARGV[1], 'open', '0', 'floor', ARGV[2], 'done', ARGV[2], 'run', server())
for n = 3, #ARGV do redis.call('HSET', incarnations_key, ARGV[n], 'd') end
return { 1 }
