-- Has a group go on reading elsewhere. What is pending behind that place will be read anew, so it is settled here: a page
-- at a time, of which any may be the last one that is carried out.
-- KEYS: 1 stream, 2 due zset, 3 suspects zset, 4 failures hash.
-- ARGV: 1 group, 2 the entry id behind which it reads on ("$": behind the newest; "": it was told before). One that is
-- not yet is taken for the newest: what comes until then would be passed over, and nobody would see it wait.
-- Returns: how many were settled; to be called again until that is none.
local place = ARGV[2]
if place ~= '' then
  if parts(place) then
    local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    if not newest or is_less(newest[1], place) then place = '$' end
  end
  redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], place)
end
local last
for _, group in ipairs(groups_of(KEYS[1])) do
  if group['name'] == ARGV[1] then last = group['last-delivered-id'] end
end
if not last then return 0 end
local page = redis.call('XPENDING', KEYS[1], ARGV[1], '(' .. last, '+', 200)
for _, one in ipairs(page) do
  redis.call('XACK', KEYS[1], ARGV[1], one[1])
  redis.call('ZREM', KEYS[2], one[1])
  redis.call('ZREM', KEYS[3], one[1])
  redis.call('HDEL', KEYS[4], one[1])
end
return #page
