-- The counters as consumers and nodes look at them: {epoch, open, floor, done, foreign, incarnation, flags, ...}, or nothing.
local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'floor', 'done', 'run')
if not c[1] then return {} end
local reply = { c[1], c[2], c[3], c[4], c[5] == server() and '0' or '1' }
for _, value in ipairs(redis.call('HGETALL', incarnations_key)) do reply[#reply + 1] = value end
return reply
