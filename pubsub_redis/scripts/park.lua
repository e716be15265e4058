-- Parks deliveries of a consumer: they stay pending, under ~parked, until they are due. Atomic for all ids.
-- Acts only on entries that are still pending under the caller, in the attempt that it knows (fencing).
-- KEYS: 1 stream, 2 due zset, 3 suspects zset, 4 failures hash.
-- ARGV: 1 group, 2 caller, 3 delay in ms, 4 "1" if the attempt counts else "0", 5 control channel, 6 wake-up text,
--       then pairs of entry id and attempt.
-- Returns: the ids that were not the caller's any more.
local now = server_time(KEYS[2], KEYS[3], KEYS[4])
local due_at = now + tonumber(ARGV[3])
local first = {}
for i = 2, 3 do first[i] = tonumber(redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')[2] or math.huge) end
local lost, is_news = {}, false
for i = 7, #ARGV, 2 do
  local id, attempt = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if pending and pending[4] == attempt then
    local failures = redis.call('HGET', KEYS[4], id)
    local list = (failures and failures:sub(1, 2) ~= '0 ') and 3 or 2
    list_due(KEYS[list], due_at, id)
    is_news = is_news or due_at < first[list]
    local count = attempt
    if ARGV[4] == '0' then
      count = attempt - 1
    elseif not failures then
      redis.call('HSET', KEYS[4], id, '0 ' .. string.format('%.0f', now))
    end
    redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'RETRYCOUNT', count, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
if is_news then
  redis.pcall('PUBLISH', ARGV[5], ARGV[6])  -- a hint only: where it is not permitted, others look from time to time
end
return lost
