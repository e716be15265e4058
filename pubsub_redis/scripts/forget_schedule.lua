-- Forgets a schedule of an owner, if nobody has named it for long.
-- KEYS: 1 schedules hash of the topic.
-- ARGV: 1 name, 2 owner, 3 for how many ms nobody may have named it.
-- Returns: 1 if it is forgotten, 0 if it is in use, or that of another owner.
local state = redis.call('HGET', KEYS[1], ARGV[1])
if not state then return 1 end
local seen, owner = state:match('^%d+ (%d+) %d (%S+)')
local now = now_ms()
if owner ~= ARGV[2] or math.abs(now - seen) <= tonumber(ARGV[3]) then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
return 1
