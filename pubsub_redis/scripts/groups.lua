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
