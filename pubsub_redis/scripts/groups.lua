-- Stands before the scripts that call it. Returns the groups of a stream, each as what the server says of it, by name.
local function groups_of(stream)
  local groups = {}
  for number, facts in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    groups[number] = {}
    for i = 1, #facts, 2 do groups[number][facts[i]] = facts[i + 1] end
  end
  return groups
end
-- Returns the first entry id that a group has not settled.
local function first_unsettled(stream, group)
  local first = after(group['last-delivered-id'])
  if group['pending'] > 0 then
    local oldest = redis.call('XPENDING', stream, group['name'])[2]
    if is_less(oldest, first) then first = oldest end
  end
  return first
end
local LOST_FOR = 86400000  -- ms for which one that was lost is waited for
-- Returns the lowest of `first` and of the first entry ids that groups have not settled which are known, by their floors,
-- and not there any more: they were lost, as one that is removed is not known any more, and somebody will make them anew.
local function or_of_lost(first, floors, groups)
  local there = {}
  for _, group in ipairs(groups) do there[group['name']] = true end
  local names = redis.pcall('HKEYS', floors)
  if names.err then return first end  -- not permitted to this user
  for _, name in ipairs(names) do
    local lost = '~lost:' .. name
    if there[name] or name:sub(1, 1) == '~' then
      if name:sub(1, 6) == '~lost:' and there[name:sub(7)] then redis.call('HDEL', floors, name) end
    else
      local since = redis.call('HGET', floors, lost)
      if not since then redis.pcall('HSET', floors, lost, string.format('%.0f', now_ms())) end
      local id = redis.call('HGET', floors, name):match('^%S+')
      if (not since or now_ms() - since < LOST_FOR) and is_less(id, first) then first = id end
    end
  end
  return first
end
-- Notes, when entries below `bound` were removed from a stream, up to where: who looks for one in vain must know.
local function note_removed(stream, floors, bound)
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if first and is_less(first[1], bound) then bound = first[1] end
  local known = redis.pcall('HGET', floors, '~removed')
  if type(known) ~= 'string' or is_less(known, bound) then redis.pcall('HSET', floors, '~removed', bound) end
end
