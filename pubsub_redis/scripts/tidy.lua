-- Forgets what a group knows of entries that are settled by now, and dead letters that were kept long enough.
-- KEYS: 1 stream, 2 failures hash, 3 dead stream.
-- ARGV: 1 group, 2 cursor of the last call (0: the first), 3 for how many ms dead letters are kept, 4 how many at most.
-- Returns: {the cursor for the next call, how many dead letters were removed}.
local page = redis.call('HSCAN', KEYS[2], ARGV[2], 'COUNT', 100)
for i = 1, #page[2], 2 do
  local id = page[2][i]
  if id:sub(1, 1) ~= '~' and #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) == 0 then
    redis.call('HDEL', KEYS[2], id)
  end
end
local cut = string.format('%.0f-0', math.max(0, now_ms() - ARGV[3]))
local removed = redis.call('XTRIM', KEYS[3], 'MINID', '~', cut, 'LIMIT', 1000)
if removed < 500 then removed = removed + redis.call('XTRIM', KEYS[3], 'MINID', cut) end
local excess = redis.call('XLEN', KEYS[3]) - ARGV[4]
if excess > 0 then removed = removed + redis.call('XTRIM', KEYS[3], 'MAXLEN', '~', ARGV[4], 'LIMIT', 1000) end
return {page[1], removed}
