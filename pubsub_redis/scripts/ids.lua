-- Stands before the scripts that call it. Compares entry ids as numbers of any length: the second part may be larger
-- than Lua can count.
local function parts(id) return id:match('^(%d+)-(%d+)$') end
local function is_less(a, b)
  local a_ms, a_seq = parts(a)
  local b_ms, b_seq = parts(b)
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end
local function after(id)
  local ms, seq = parts(id)
  if #seq > 15 then return string.format('%.0f-0', ms + 1) end
  return string.format('%s-%.0f', ms, seq + 1)
end
