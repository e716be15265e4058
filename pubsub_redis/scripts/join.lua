-- Makes a group if there is none, and restores one that was lost to what is known of it: what it had not settled, as far
-- as that was noted, and what was handed out since, is parked for a while. In that time those who hold it take it back,
-- and those who settled it acknowledge it again.
-- KEYS: 1 stream, 2 due zset, 3 suspects zset, 4 floors hash.
-- ARGV: 1 group, 2 where a new one begins, 3 the last entry that the caller was handed, 4 for how many ms to park.
-- Returns: {how often the group was made, how many entries were parked, 1 if there are more to be parked else 0}; to be
--          called until there are none.
local function before(id)
  local ms, seq = parts(id)
  if seq == '0' then return string.format('%.0f-18446744073709551615', ms - 1) end
  if #seq > 15 then return ms .. '-0' end
  return string.format('%s-%.0f', ms, seq - 1)
end
local function last_delivered()
  if redis.call('EXISTS', KEYS[1]) == 0 then return nil end
  for _, group in ipairs(groups_of(KEYS[1])) do
    if group['name'] == ARGV[1] then return group['last-delivered-id'] end
  end
end
local due_at = now_ms() + tonumber(ARGV[4])
local function park(id)
  if not (redis.call('ZSCORE', KEYS[2], id) or redis.call('ZSCORE', KEYS[3], id)) then
    list_due(KEYS[2], due_at, id)
  end
  redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'RETRYCOUNT', 0, 'FORCE', 'JUSTID')
end
local times = '~times:' .. ARGV[1]
local last = last_delivered()
if not last then
  local first, known, ids = (redis.call('HGET', KEYS[4], ARGV[1]) or ''):match('^(%S+) ?(%S*) ?(.*)$')
  last = ARGV[2]
  if first then last = known ~= '' and known or before(first) end
  redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[1], last, 'MKSTREAM')
  redis.call('HINCRBY', KEYS[4], times, 1)
  for id in (ids or ''):gmatch('%S+') do park(id) end
end
local parked, more = 0, 0
if ARGV[3] ~= '' then
  local passed = redis.call('XRANGE', KEYS[1], '(' .. last, ARGV[3], 'COUNT', 200)
  for _, entry in ipairs(passed) do park(entry[1]) end
  if #passed > 0 then redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], passed[#passed][1]) end
  parked = #passed
  if parked == 200 then more = 1 end
end
return {tonumber(redis.call('HGET', KEYS[4], times) or 0), parked, more}
