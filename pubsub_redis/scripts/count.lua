-- Counts the entries of a stream behind a group's last one, up to a bound; without bringing them here.
-- KEYS: 1 stream.
-- ARGV: 1 entry id behind which to count, 2 how many at most.
-- Returns: {how many there are, 1 if there may be more else 0}.
local most, count, last = tonumber(ARGV[2]), 0, ARGV[1]
while count < most do
  local page = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', math.min(200, most - count))
  count = count + #page
  if #page < math.min(200, most - (count - #page)) then return {count, 0} end
  last = page[#page][1]
end
return {count, #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)}
