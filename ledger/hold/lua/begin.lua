-- A new epoch, empty and rebuilding. ARGV: epoch, the newest that was opened before, offset, then incarnations that were given up. Only a
-- higher number is accepted.
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'opened')
if c[1] and tonumber(c[1]) >= tonumber(ARGV[1]) then return { 0 } end
local opened = ARGV[2]
for _, known in ipairs({ c[2] == '1' and c[1] or '0', c[3] or '0' }) do
  if tonumber(known) > tonumber(opened) then opened = known end
end
for _, incarnation in ipairs(redis.call('HKEYS', incarnations_key)) do redis.call('UNLINK', holds_key(incarnation)) end
redis.call('UNLINK', accounts_key, incarnations_key)
redis.call('HSET', counters_key, 'epoch', ARGV[1], 'open', '0', 'opened', opened, 'floor', ARGV[3], 'done', ARGV[3], 'run', server())
for n = 4, #ARGV do redis.call('HSET', incarnations_key, ARGV[n], 'd') end
return { 1 }
