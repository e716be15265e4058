-- Trims what every group has settled and nobody wants to keep; notes how far that is, and each group has come.
-- KEYS: 1 stream, 2 floors hash.
-- ARGV: 1 for how many ms what is settled is kept, 2 how many messages at most, 3 how many to remove at most.
-- Returns: {how many were removed, then for each group {name, the first entry id that it has not settled}}.
if redis.call('EXISTS', KEYS[1]) == 0 then return {0} end
local result = {0}
local floor
local groups = groups_of(KEYS[1])
for _, group in ipairs(groups) do
  local name, last, unsettled = group['name'], group['last-delivered-id'], {}
  local first = first_unsettled(KEYS[1], group)
  local known = first
  if group['pending'] <= 500 then
    for _, one in ipairs(redis.call('XPENDING', KEYS[1], name, '-', '+', 500)) do unsettled[#unsettled + 1] = one[1] end
    known = first .. ' ' .. last .. ' ' .. table.concat(unsettled, ' ')
  end
  if redis.call('HGET', KEYS[2], name) ~= known then redis.pcall('HSET', KEYS[2], name, known) end
  if not floor or is_less(first, floor) then floor = first end
  result[#result + 1] = {name, first}
end
if not floor then return result end  -- without a group nothing is settled
floor = or_of_lost(floor, KEYS[2], groups)
local cut = string.format('%.0f-0', math.max(0, now_ms() - ARGV[1]))
if is_less(floor, cut) then cut = floor end
-- Whole nodes first, up to the limit; then exactly, which is less than a node.
local removed = redis.call('XTRIM', KEYS[1], 'MINID', '~', cut, 'LIMIT', ARGV[3])
if removed * 2 < tonumber(ARGV[3]) then removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', cut) end
local excess = redis.call('XLEN', KEYS[1]) - ARGV[2]
if excess > 0 then
  removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', math.min(excess, ARGV[3]))
  cut = floor
end
if removed > 0 then note_removed(KEYS[1], KEYS[2], cut) end
result[1] = removed
return result
