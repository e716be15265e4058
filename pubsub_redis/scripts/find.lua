-- Looks for the message of an id in a stream, of messages or of dead letters; without bringing the others here.
-- KEYS: 1 stream.
-- ARGV: 1 where to begin (an entry id, or one behind "("), 2 the message's id, 3 how many entries to look at.
-- Returns: {the entry id of the first that is it or "", the last entry id looked at or "" if there are no more}.
local page = redis.call('XRANGE', KEYS[1], ARGV[1], '+', 'COUNT', ARGV[3])
for _, entry in ipairs(page) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'id' and entry[2][i + 1] == ARGV[2] then return {entry[1], entry[1]} end
  end
end
return {'', #page == tonumber(ARGV[3]) and page[#page][1] or ''}
