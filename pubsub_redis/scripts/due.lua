-- Stands before the scripts that call it. Lists an entry as due at a time (ms), behind those that are due in the same
-- millisecond: by a fraction of it, as the server sorts what has the same score by the text of the id, 10 before 2.
local function list_due(list, due_at, id)
  local next_ms = string.format('(%.0f', due_at + 1)
  local last = redis.call('ZRANGE', list, next_ms, due_at, 'BYSCORE', 'REV', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  redis.call('ZADD', list, last and math.min(last + 1 / 1024, due_at + 1023 / 1024) or due_at, id)
end
