-- One page of the accounts and done, at one instant: {done, cursor, account, record, ...}. ARGV: cursor, about how many.
local page = redis.call('HSCAN', accounts_key, ARGV[1], 'COUNT', ARGV[2])
local reply = { redis.call('HGET', counters_key, 'done') or '-1', page[1] }
for _, value in ipairs(page[2]) do reply[#reply + 1] = value end
return reply
