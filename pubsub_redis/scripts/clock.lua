-- Stands before the scripts that call it. Returns the server's time in ms, which may have been set back since the due
-- times were written: then they are set back too, or all that waits would wait for as much longer.
local function server_time(due, suspects, failures)
  local now = now_ms()
  local seen = tonumber(redis.call('HGET', failures, '~seen') or now)
  if now < seen - 1000 then
    for _, list in ipairs({due, suspects}) do
      for _, id in ipairs(redis.call('ZRANGE', list, 0, -1)) do redis.call('ZINCRBY', list, now - seen, id) end
    end
  end
  if seen == now or math.abs(now - seen) > 1000 then
    redis.pcall('HSET', failures, '~seen', string.format('%.0f', now))
  end
  return now
end
