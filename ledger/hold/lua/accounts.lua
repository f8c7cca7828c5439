-- Named accounts (ARGV) and done, at one instant: {done, record, ...}; a record that is not there is false.
local reply = { redis.call('HGET', counters_key, 'done') or '-1' }
for first = 1, #ARGV, CHUNK do
  for _, value in ipairs(redis.call('HMGET', accounts_key, unpack(ARGV, first, math.min(first + CHUNK - 1, #ARGV)))) do
    reply[#reply + 1] = value
  end
end
return reply
