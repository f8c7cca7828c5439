-- Opens the epoch ARGV[1] and raises the floor to ARGV[2].
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'floor', 'run')
if c[1] ~= ARGV[1] or c[2] ~= '0' or c[4] ~= server() then return { 0 } end
if tonumber(ARGV[2]) > tonumber(c[3]) then redis.call('HSET', counters_key, 'floor', ARGV[2]) end
redis.call('HSET', counters_key, 'open', '1')
return { 1 }
