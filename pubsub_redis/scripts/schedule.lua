-- Names a schedule, or fires a tick of it: publishes its message if nobody has fired this tick or a later one.
-- KEYS: 1 schedules hash of the topic: name → last tick (ms), when it was last named (ms), "1" if it is paused else "0",
--       its owner, and what it is; 2 stream, 3 how many were dropped ever, 4 floors hash.
-- ARGV: 1 name, 2 owner (not to fire), 3 what it is, 4 "name", or "start" (by a process that starts), or "fire"; 5 for how many ms
--       nobody may have named what it was, for it to become another one; and to fire: 6 the tick, 7 how many messages
--       the topic may hold (0: any number), 8 "1" if its oldest are dropped where there is no room else "0", then the
--       five values of the entry.
-- Returns: {what came of it, the last tick}: "named"; "fired", "past", "early", "paused", "superseded", or "full".
local now = now_ms()
local state = redis.call('HGET', KEYS[1], ARGV[1])
local last, seen, paused, owner, spec
if state then
  last, seen, paused, owner, spec = state:match('^(%d+) (%d+) (%d) (%S+) (.*)$')
  last, seen = tonumber(last), tonumber(seen)
end
local is_fire = ARGV[4] == 'fire'
local function note(tick)
  local by = is_fire and (owner or '-') or ARGV[2]
  redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f %.0f %s %s ', tick, now, paused or '0', by) .. ARGV[3])
  return tick
end
local tick = is_fire and tonumber(ARGV[6])
if not state then
  last = is_fire and tick - 1 or now  -- who fires knows of it: it was lost, with all that the server had
elseif spec ~= ARGV[3] then
  if ARGV[4] ~= 'start' and math.abs(now - seen) <= tonumber(ARGV[5]) then return {'superseded', last} end
  last = note(math.max(last, now))
end
if not is_fire then return {'named', note(last)} end
if tick > now then return {'early', last} end
if tick <= last then return {'past', last} end
if paused == '1' then return {'paused', note(tick)} end
if make_room(KEYS[2], KEYS[3], KEYS[4], tonumber(ARGV[7]), 1, ARGV[8] == '1') < 0 then return {'full', last} end
redis.call('XADD', KEYS[2], '*', 'id', ARGV[9], 'payload', ARGV[10], 'key', ARGV[11], 'headers', ARGV[12],
  'source', ARGV[13])
return {'fired', note(tick)}
