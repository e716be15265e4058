-- Deletes a message that is not due yet, and frees its dedup key.
-- KEYS: 1 delayed zset, 2 delayed hash, 3 (if it has one) its dedup key.
-- ARGV: 1 the message's id.
-- Returns: 1, or 0 if there was none.
local was_there = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
if was_there == 1 and KEYS[3] and redis.call('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return was_there
