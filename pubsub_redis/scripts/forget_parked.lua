-- Settles what a group has parked of entries that were deleted.
-- KEYS: 1 stream, 2 due zset, 3 suspects zset, 4 failures hash.
-- ARGV: 1 group, 2 the last entry id that was deleted.
-- Returns: how many were settled; to be called again until that is none.
local page = redis.call('XPENDING', KEYS[1], ARGV[1], '-', ARGV[2], 200, '~parked')
for _, one in ipairs(page) do
  redis.call('XACK', KEYS[1], ARGV[1], one[1])
  redis.call('ZREM', KEYS[2], one[1])
  redis.call('ZREM', KEYS[3], one[1])
  redis.call('HDEL', KEYS[4], one[1])
end
return #page
