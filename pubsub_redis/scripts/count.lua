-- Counts entries of a stream behind one of them, without bringing them here.
-- KEYS: 1 stream.
-- ARGV: 1 entry id behind which to count, 2 how many at most.
-- Returns: {how many there are, the last of them or ""}.
local page = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+', 'COUNT', ARGV[2])
return {#page, #page > 0 and page[#page][1] or ''}
