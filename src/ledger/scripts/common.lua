-- What all scripts share; the Rust side puts this text before each of them. The contract is docs/protocol.md.
local MAX_STEP, HOLD, TTL, CLOSED_TTL, MOST = 3000, 65000, 86400, 120, 1e12
local CLOSED = 'detached'

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
end

-- Lua's own tostring rounds at 14 digits.
local function int(n) return string.format('%.0f', n) end

-- Arguments are checked before anything is written: a script that fails halfway is not rolled back.
local function whole(s, most)
  local n = s and string.match(s, '^%d+$') and tonumber(s)
  if not n or n > most then error('not a whole number from 0 to ' .. int(most) .. ': ' .. tostring(s)) end
  return n
end

local function words(s)
  local out = {}
  for w in string.gmatch(s or '', '%S+') do out[#out + 1] = tonumber(w) end
  return out
end

-- Ledger time: no step of the server's clock may end anything early.
local function advance(clock, since) return clock + math.max(0, math.min(now - since, MAX_STEP)) end

-- Another server wrote last: what it wrote at the end may be missing here.
local function learning_end(learn, wrote, replid, clock, lease)
  if wrote ~= replid then return math.max(learn, clock + lease + HOLD) end
  return learn
end
