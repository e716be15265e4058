-- Adds messages to a topic whose backlog is bounded: all of them, or none. What every group has settled gives way first.
-- KEYS: 1 stream, 2 how many were dropped ever.
-- ARGV: 1 how many the topic may hold, 2 "1" if its oldest are dropped where there is no room else "0", then the ten
--       names and values of each entry.
-- Returns: how many were dropped; -1 if there was no room, and none was added.
local function parts(id) return id:match('^(%d+)-(%d+)$') end
local function is_less(a, b)  -- as numbers of any length: the second part may be larger than Lua can count
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if a_ms ~= b_ms then return tonumber(a_ms) < tonumber(b_ms) end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end
local function after(id)
  local ms, seq = parts(id)
  if #seq > 15 then return string.format('%.0f-0', ms + 1) end
  return string.format('%s-%.0f', ms, seq + 1)
end
local count = (#ARGV - 2) / 10
local excess = redis.call('XLEN', KEYS[1]) + count - ARGV[1]
if excess > 0 then
  local floor
  for _, facts in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #facts, 2 do group[facts[i]] = facts[i + 1] end
    local first = after(group['last-delivered-id'])
    if group['pending'] > 0 then
      local oldest = redis.call('XPENDING', KEYS[1], group['name'])[2]
      if is_less(oldest, first) then first = oldest end
    end
    if not floor or is_less(first, floor) then floor = first end
  end
  if floor then
    -- Whole nodes first; then one by one, as no command says how many entries are below the floor.
    excess = excess - redis.call('XTRIM', KEYS[1], 'MINID', '~', floor, 'LIMIT', excess)
    if excess > 1000 then excess = excess - redis.call('XTRIM', KEYS[1], 'MINID', floor) end
    while excess > 0 do
      local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
      if not first or not is_less(first[1], floor) then break end
      excess = excess - redis.call('XTRIM', KEYS[1], 'MAXLEN', redis.call('XLEN', KEYS[1]) - 1)
    end
  end
end
local dropped = 0
if excess > 0 then
  if ARGV[2] == '0' then return -1 end
  dropped = redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1] - count)
end
for i = 3, #ARGV, 10 do redis.call('XADD', KEYS[1], '*', unpack(ARGV, i, i + 9)) end
if dropped > 0 then redis.pcall('INCRBY', KEYS[2], dropped) end  -- too late to refuse: they are added
return dropped
