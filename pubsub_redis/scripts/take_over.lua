-- Parks what a consumer that died had in hand, due now, as suspects; its attempts count, and the crash is noted. When
-- nothing is left its name is removed, never before: deleting a consumer with pending entries would lose them.
-- KEYS: 1 stream, 2 suspects zset, 3 failures hash, 4 (not in a cluster, where it is on another node) the consumer's
--       sign of life.
-- ARGV: 1 group, 2 the consumer that died, 3 how many at most, 4 control channel, 5 wake-up text.
-- Returns: {how many were parked, 1 if its name was removed else 0}; {0, 0} if it lives after all.
if KEYS[4] and redis.call('EXISTS', KEYS[4]) == 1 then return {0, 0} end
local now = now_ms()
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[3], ARGV[2])
for _, entry in ipairs(pending) do
  local crashes, first = (redis.call('HGET', KEYS[3], entry[1]) or string.format('0 %.0f', now)):match('^(%d+) (%d+)')
  redis.call('HSET', KEYS[3], entry[1], string.format('%d %s', crashes + 1, first))
  list_due(KEYS[2], now, entry[1])
  redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, entry[1], 'JUSTID')
end
if #pending > 0 then redis.pcall('PUBLISH', ARGV[4], ARGV[5]) end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return {#pending, 0} end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return {#pending, 1}
