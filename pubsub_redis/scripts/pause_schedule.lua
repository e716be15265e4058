-- Pauses a schedule, or lets it go on. What would have been fired in a pause is not made up for.
-- KEYS: 1 schedules hash of the topic.
-- ARGV: 1 name, 2 "1" to pause it else "0".
-- Returns: 1, or 0 if there is none.
local state = redis.call('HGET', KEYS[1], ARGV[1])
if not state then return 0 end
local last, seen, paused, rest = state:match('^(%d+) (%d+) (%d) (.*)$')
if paused ~= ARGV[2] then
  if paused == '1' then last = string.format('%.0f', math.max(last, now_ms())) end
  redis.call('HSET', KEYS[1], ARGV[1], table.concat({last, seen, ARGV[2], rest}, ' '))
end
return 1
