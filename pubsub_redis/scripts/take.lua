-- Claims parked deliveries that are due for the caller, who works on them as one attempt more.
-- KEYS: 1 stream, 2 due zset.
-- ARGV: 1 group, 2 caller, 3 how many at most.
-- Returns: ms until the next one is due (-1: none), then for each delivery: {id, attempt, fields}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local result = {-1}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[3])) do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, '~parked')[1]
  if pending then
    local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)[1]
    if entry then
      result[#result + 1] = {id, pending[4] + 1, entry[2]}
    else
      redis.call('XACK', KEYS[1], ARGV[1], id)  -- somebody deleted the entry: there is nothing to deliver
    end
  end
  redis.call('ZREM', KEYS[2], id)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if first[2] then result[1] = math.max(0, tonumber(first[2]) - now) end
return result
