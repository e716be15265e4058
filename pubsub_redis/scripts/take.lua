-- Claims parked deliveries that are due for the caller, who works on them as one attempt more; adds delayed messages
-- that are due to the stream, where all groups find them.
-- KEYS: 1 stream, 2 due zset, 3 suspects zset, 4 failures hash, 5 how many were dropped ever, 6 floors hash,
--       7 delayed zset, 8 delayed hash.
-- ARGV: 1 group, 2 caller, 3 how many at most, 4 how many of them may be suspects, 5 how many the topic may hold (0: any
--       number), 6 "1" if its oldest are dropped where there is no room else "0".
-- Returns: ms until the next one is due, ms until the next suspect is, ms until the next delayed one is (-1: none), how
--          many were dropped, then for each delivery: {id, attempt, crashes, fields}.
local now = server_time(KEYS[2], KEYS[3], KEYS[4])
local next_ms = string.format('(%.0f', now + 1)
local result = {-1, -1, -1, 0}
local function take(list, most)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[list], '-inf', next_ms, 'LIMIT', 0, most)) do
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, '~parked')[1]
    if pending then
      local entry = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id)[1]
      if entry then
        local crashes = 0
        if list == 3 then crashes = tonumber((redis.call('HGET', KEYS[4], id) or '1 '):match('^%d+')) end
        result[#result + 1] = {id, pending[4] + 1, crashes, entry[2]}
      else
        redis.call('XACK', KEYS[1], ARGV[1], id)  -- somebody deleted the entry: there is nothing to deliver
        redis.call('HDEL', KEYS[4], id)
      end
    end
    redis.call('ZREM', KEYS[list], id)
  end
end
local function until_next(list)
  local score = redis.call('ZRANGE', KEYS[list], 0, 0, 'WITHSCORES')[2]
  return score and math.max(0, math.floor(tonumber(score)) - now) or -1
end
local suspects = math.min(tonumber(ARGV[3]), tonumber(ARGV[4]))
if suspects > 0 then take(3, suspects) end
local left = tonumber(ARGV[3]) - (#result - 4)
if left > 0 then take(2, left) end
result[1], result[2] = until_next(2), until_next(3)
result[3], result[4] = move_due({KEYS[1], KEYS[5], KEYS[6], KEYS[7], KEYS[8]}, now, tonumber(ARGV[5]), ARGV[6] == '1', 100)
return result
