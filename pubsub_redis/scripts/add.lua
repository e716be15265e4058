-- Publishes messages of a topic: all of them, or none.
-- KEYS: 1 stream, 2 how many were dropped ever, 3 floors hash, 4 delayed zset, 5 delayed hash, then the dedup keys and
--       fences.
-- ARGV: 1 how many the topic may hold (0: any number), 2 "1" if its oldest are dropped where there is no room else "0",
--       3 control channel, 4 wake-up text without the seconds, then for each message: when ("" now, "+ms" so much
--       later, "@ms" at that time), which of KEYS is its dedup key ("" if it has none), for how many ms that counts,
--       which of KEYS is its fence ("" if it has none), what that must hold if it exists, and the five values of its
--       entry.
-- Returns: how many were dropped (-1: there was no room, -2: a later request has fenced off this one; nothing was done),
--          then for each message the id of the one that was published under its dedup key before, or "".
local now = now_ms()
redis.call('XLEN', KEYS[1])  -- an error if it is no stream, before anything is done
for i = 5, #ARGV, 10 do
  local fence = ARGV[i + 3] ~= '' and redis.call('GET', KEYS[tonumber(ARGV[i + 3])])
  if fence and fence ~= ARGV[i + 4] then return {-2} end
end
local result, known, due_at, count = {0}, {}, {}, 0
for i = 5, #ARGV, 10 do
  local kind, ms = ARGV[i]:sub(1, 1), tonumber(ARGV[i]:sub(2))
  local due = kind == '+' and now + ms or kind == '@' and ms or now
  local other
  if ARGV[i + 1] ~= '' then
    local key = KEYS[tonumber(ARGV[i + 1])]
    other = known[key] or redis.call('GET', key)
    known[key] = other or ARGV[i + 5]
  end
  if other then
    result[#result + 1] = other == ARGV[i + 5] and '' or other
  else
    result[#result + 1] = ''
    due_at[i] = due
    if due <= now then count = count + 1 end
  end
end
result[1] = make_room(KEYS[1], KEYS[2], KEYS[3], tonumber(ARGV[1]), count, ARGV[2] == '1')
if result[1] < 0 then return {-1} end
local first = tonumber(redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')[2] or math.huge)
local earliest = first
for i = 5, #ARGV, 10 do
  local due, dedup = due_at[i], KEYS[tonumber(ARGV[i + 1])]
  if due then
    if due <= now then
      redis.call('XADD', KEYS[1], '*', 'id', ARGV[i + 5], 'payload', ARGV[i + 6], 'key', ARGV[i + 7],
        'headers', ARGV[i + 8], 'source', ARGV[i + 9])
    else
      redis.call('HSET', KEYS[5], ARGV[i + 5], packed({string.format('%.0f', now), dedup or '', ARGV[i + 5],
        ARGV[i + 6], ARGV[i + 7], ARGV[i + 8], ARGV[i + 9]}))
      redis.call('ZADD', KEYS[4], string.format('%.0f', due), ARGV[i + 5])
      earliest = math.min(earliest, due)
    end
    if dedup then redis.call('SET', dedup, ARGV[i + 5], 'PX', ARGV[i + 2]) end
  end
end
if earliest < first then
  redis.pcall('PUBLISH', ARGV[3], ARGV[4] .. string.format('%.3f', (earliest - now) / 1000))
end
return result
