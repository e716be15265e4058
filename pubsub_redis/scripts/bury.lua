-- Makes a delivery a dead letter: writes it, as it was published, behind its reason, then acknowledges. Both or neither.
-- Acts only if the entry is still pending under the caller, in the attempt that it knows (fencing).
-- KEYS: 1 stream, 2 dead stream, 3 failures hash.
-- ARGV: 1 group, 2 caller, 3 entry id, 4 attempt, 5 to 14 the fields and values of the entry, for when it was
--       deleted meanwhile, then those of the reason.
-- Returns: 1, or 0 if the delivery was not the caller's any more.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1]
if not pending or pending[4] ~= tonumber(ARGV[4]) then return 0 end
local letter = {'first', (redis.call('HGET', KEYS[3], ARGV[3]) or ''):match('%d+$') or ''}
for i = 15, #ARGV do letter[#letter + 1] = ARGV[i] end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
local fields = entry and entry[2]
-- Of another program there may be more than `unpack` takes; these fields are the payload anyway.
if not fields or #fields > 4000 then fields = {unpack(ARGV, 5, 14)} end
for _, value in ipairs(fields) do letter[#letter + 1] = value end
redis.call('XADD', KEYS[2], '*', unpack(letter))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[3])
return 1
