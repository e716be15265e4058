-- Takes back what the caller still works on, after its group was lost and made anew.
-- KEYS: 1 stream, 2 due zset, 3 suspects zset.
-- ARGV: 1 group, 2 caller, then pairs of entry id and attempt.
-- Returns: how many were taken back; the others belong to somebody else, or are settled.
local taken = 0
for i = 3, #ARGV, 2 do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if pending and (pending[2] == '~parked' or pending[2] == ARGV[2]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
    redis.call('ZREM', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i])
    taken = taken + 1
  end
end
return taken
