-- Makes a delivery a dead letter: writes it, as it was published, behind its reason, then acknowledges. Both or neither.
-- Acts only if the entry is still pending under the caller, in the attempt that it knows (fencing).
-- KEYS: 1 stream, 2 dead stream, 3 failures hash.
-- ARGV: 1 group, 2 caller, 3 entry id, 4 attempt, then fields and values of the reason.
-- Returns: 1, or 0 if the delivery was not the caller's any more.
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2])[1]
if not pending or pending[4] ~= tonumber(ARGV[4]) then return 0 end
local letter = {'first', (redis.call('HGET', KEYS[3], ARGV[3]) or ''):match('%d+$') or ''}
for i = 5, #ARGV do letter[#letter + 1] = ARGV[i] end
local entry = redis.call('XRANGE', KEYS[1], ARGV[3], ARGV[3])[1]
if entry then
  if #entry[2] > 4000 then  -- more than `unpack` takes: another program's, whose fields are the payload anyway
    local fields = {}
    for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
    entry[2] = {'id', ARGV[3], 'payload', cjson.encode(fields), 'key', '', 'headers', '', 'source', ''}
  end
  for _, value in ipairs(entry[2]) do letter[#letter + 1] = value end
end
redis.call('XADD', KEYS[2], '*', unpack(letter))
redis.call('XACK', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[3], ARGV[3])
return 1
