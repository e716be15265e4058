-- Stands before the scripts that call it. Makes room for so many more entries in a stream that may hold `most` (0: any
-- number). What every group has settled gives way first, then, if that is allowed, the oldest.
-- Returns how many were dropped that were not settled, also counted under `dropped_key`; -1 if there is no room, and
-- none was dropped.
local function make_room(stream, dropped_key, floors, most, count, may_drop)
  if most == 0 then return 0 end
  local excess = redis.call('XLEN', stream) + count - most
  if excess <= 0 then return 0 end
  local floor
  local groups = groups_of(stream)
  for _, group in ipairs(groups) do
    local first = first_unsettled(stream, group)
    if not floor or is_less(first, floor) then floor = first end
  end
  if floor then
    floor = or_of_lost(floor, floors, groups)
    local before = excess
    -- Whole nodes first; then one by one, as no command says how many entries are below the floor.
    excess = excess - redis.call('XTRIM', stream, 'MINID', '~', floor, 'LIMIT', excess)
    if excess > 1000 then excess = excess - redis.call('XTRIM', stream, 'MINID', floor) end
    while excess > 0 do
      local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
      if not first or not is_less(first[1], floor) then break end
      excess = excess - redis.call('XTRIM', stream, 'MAXLEN', redis.call('XLEN', stream) - 1)
    end
    if excess < before then note_removed(stream, floors, floor) end
  end
  if excess <= 0 then return 0 end
  if not may_drop then return -1 end
  local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
  -- Also without memory: a script that has freed some may go on.
  local dropped = redis.call('XTRIM', stream, 'MAXLEN', most - count)
  note_removed(stream, floors, after(last[1]))
  redis.pcall('INCRBY', dropped_key, dropped)
  return dropped
end
