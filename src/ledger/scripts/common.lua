-- What all scripts share; the Rust side puts this text before each of them. The contract is docs/protocol.md.
local MAX_STEP, HOLD, TTL, CLOSED_TTL, MOST = 1000, 65000, 86400, 120, 1e12
-- What a member says of its window: so many steps, of so many ms.
local LEAVE_STEPS, LEAVE_STEP = 60, 1000
-- What left the window of a process that has ended may be lent so much later: only here the ledger's clock measures what a
-- member's measures else, and one step of it may fall into that minute.
local LEAVE_SLACK = MAX_STEP
-- A process that the ledger never heard of admits nothing for a lease and HOLD; at 30 s the operator counts it.
local SILENT = HOLD - 30000
-- The kubelet cuts finishedAt to whole seconds, and a member's guard may have become shorter by so much since it spoke.
local END_SLACK = 2000
local CLOSED = 'detached'

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local function replication_id()
  return string.match(redis.call('INFO', 'replication'), 'master_replid:(%w+)') or ''
end

-- Lua's own way to text, which is faster, rounds at 14 digits.
local function int(n)
  if n < 1e14 and n > -1e14 then return n .. '' end
  return string.format('%.0f', n)
end

-- Arguments are checked before anything is written: a script that fails halfway is not rolled back.
local function whole(s, most)
  local n = s and string.match(s, '^%d+$') and tonumber(s)
  if not n or n > most then error('not a whole number from 0 to ' .. int(most) .. ': ' .. tostring(s)) end
  return n
end

-- All arguments between these two, at their places: `whole` of each, in one look.
local function wholes(from, to, most)
  local out, plain = {}, not string.find(table.concat(ARGV, ',', from, to), '[^%d,]')
  for i = from, to do
    local n = plain and tonumber(ARGV[i])
    out[i] = n and n <= most and n or whole(ARGV[i], most)
  end
  return out
end

-- Ledger time: no step of the server's clock may end anything early.
local function advance(clock, since) return clock + math.max(0, math.min(now - since, MAX_STEP)) end

-- Nothing is lent for a while when another server wrote last: what that one wrote at the end may be missing here. The same
-- when nobody called for so long that processes that nobody has heard of may have begun to admit.
local function learning(learn, round, spare, wrote, replid, since, clock, lease)
  if wrote ~= replid or now - since >= lease + SILENT then return math.max(learn, clock + lease + HOLD), round + 2, 0 end
  return learn, round, spare
end
