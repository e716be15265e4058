-- Parks deliveries of a consumer: they stay pending, under ~parked, until they are due. Atomic for all ids.
-- Acts only on entries that are still pending under the caller, in the attempt that it knows (fencing).
-- KEYS: 1 stream, 2 due zset.
-- ARGV: 1 group, 2 caller, 3 delay in ms, 4 "1" if the attempt counts else "0", 5 control channel, 6 wake-up text,
--       then pairs of entry id and attempt.
-- Returns: the ids that were not the caller's any more.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due_at = now + tonumber(ARGV[3])
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local lost = {}
for i = 7, #ARGV, 2 do
  local id, attempt = ARGV[i], tonumber(ARGV[i + 1])
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1, ARGV[2])[1]
  if pending and pending[4] == attempt then
    redis.call('ZADD', KEYS[2], due_at, id)
    local count = attempt
    if ARGV[4] == '0' then count = attempt - 1 end
    redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'RETRYCOUNT', count, 'JUSTID')
  else
    lost[#lost + 1] = id
  end
end
if #lost * 2 < #ARGV - 6 and (not first[2] or due_at < tonumber(first[2])) then
  redis.pcall('PUBLISH', ARGV[5], ARGV[6])  -- a hint only: where it is not permitted, others look from time to time
end
return lost
