-- A new epoch, empty and rebuilding. ARGV: epoch, offset. Only a higher number is accepted.
local epoch = redis.call('HGET', counters_key, 'epoch')
if epoch and tonumber(epoch) >= tonumber(ARGV[1]) then return { 0 } end
for _, incarnation in ipairs(redis.call('HKEYS', incarnations_key)) do redis.call('UNLINK', holds_key(incarnation)) end
redis.call('UNLINK', accounts_key, incarnations_key)
redis.call('HSET', counters_key, 'epoch', ARGV[1], 'open', '0', 'floor', ARGV[2], 'done', ARGV[2], 'run', server())
return { 1 }
