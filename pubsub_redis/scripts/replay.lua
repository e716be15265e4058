-- Moves dead letters back to their group: as new entries of the topic that are addressed to it. Each one as a whole.
-- KEYS: 1 stream, 2 dead stream.
-- ARGV: for each letter its position, then the ten names and values of the entry that it becomes.
-- Returns: how many were there.
local moved = 0
for i = 1, #ARGV, 11 do
  if #redis.call('XRANGE', KEYS[2], ARGV[i], ARGV[i]) > 0 then
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, i + 1, i + 10))
    redis.call('XDEL', KEYS[2], ARGV[i])
    moved = moved + 1
  end
end
return moved
