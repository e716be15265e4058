-- Stands before the scripts that call it. A message that is not due yet is kept as texts, each behind its length: when
-- it was published (ms), its dedup key or nothing, and the five values of its entry.
local function packed(texts)
  local parts = {}
  for i, text in ipairs(texts) do parts[i] = #text .. ':' .. text end
  return table.concat(parts)
end
local function unpacked(record)
  local texts, at = {}, 1
  while at <= #record do
    local colon = record:find(':', at, true)
    local length = tonumber(record:sub(at, colon - 1))
    texts[#texts + 1] = record:sub(colon + 1, colon + length)
    at = colon + length + 1
  end
  return texts
end
-- Adds what is due to its stream, at most so many. Returns the ms until the next one is due (-1: none), and how many
-- were dropped to make room. Where there is no room, in the topic or in memory, the rest waits for another second.
local function move_due(keys, now, most, may_drop, limit)
  local stream, dropped_key, floors, delayed, messages = keys[1], keys[2], keys[3], keys[4], keys[5]
  local dropped = 0
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, limit)) do
    local record = redis.call('HGET', messages, id)
    if record then
      local room = make_room(stream, dropped_key, floors, most, 1, may_drop)
      if room < 0 then return 1000, dropped end
      dropped = dropped + room
      local texts = unpacked(record)
      local source = texts[7]:gsub('life:(%d+)', function(life)
        return string.format('life:%.0f', math.max(0, life - (now - texts[1])))
      end)
      local added = redis.pcall('XADD', stream, '*', 'id', texts[3], 'payload', texts[4], 'key', texts[5],
        'headers', texts[6], 'source', source)
      if type(added) == 'table' then return 1000, dropped end
    end
    redis.call('ZREM', delayed, id)
    redis.call('HDEL', messages, id)
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, tonumber(first) - now) or -1, dropped
end
