-- The counters of each key's partition as consumers and nodes look at them: {epoch, open, opened, floor, done, foreign, incarnation, flags, ...},
-- or nothing. KEYS: one per partition; in a cluster there is one.
local this_server, replies = nil, {}
for n, key in ipairs(KEYS) do
  enter(key)
  local reply = {}
  local c = redis.call('HMGET', counters_key, 'epoch', 'open', 'opened', 'floor', 'done', 'run')
  if c[1] then
    this_server = this_server or server()
    reply = { c[1], c[2], c[3] or '0', c[4], c[5], c[6] == this_server and '0' or '1' }
    for _, value in ipairs(redis.call('HGETALL', incarnations_key)) do reply[#reply + 1] = value end
  end
  replies[n] = reply
end
return replies
