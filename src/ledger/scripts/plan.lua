-- Budgets, shares and evidence.   KEYS: meta, members, all books of the TokenBudget...
-- ARGV: epoch books, then per book: place (in KEYS) budget aside level safe leaseMs first members, and per member:
-- id share finished (0: it runs). Books without arguments are only asked whether they still hold a record.
local CHUNK = 500
local at = 2
local function take()
  at = at + 1
  return ARGV[at]
end

local plans = {}
for _ = 1, whole(ARGV[2], 1e6) do
  local place = whole(take(), #KEYS)
  if place < 3 then error('not the place of a book: ' .. place) end
  local p = { key = KEYS[place], budget = whole(take(), MOST), aside = whole(take(), MOST), level = whole(take(), MOST),
    safe = whole(take(), MOST), lease = whole(take(), MOST), first = take() == '1', members = {} }
  for i = 1, whole(take(), 1e6) do
    p.members[i] = { id = take(), share = whole(take(), MOST), finished = whole(take(), 2 ^ 53) }
  end
  plans[#plans + 1] = p
end
if at ~= #ARGV then error('arguments left over') end
local replid = replication_id()

-- Takes the first steps out of what leaves a member's window; answers with the rest of its text, and what they come to.
local function take_steps(rest, steps)
  local head, leaves = string.match(rest, '^(%S+ %S+ %S+ %S+)(.*)$')
  local step, gone = 0, 0
  leaves = string.gsub(leaves, '%d+', function(amount)
    step = step + 1
    if step > steps then return end
    gone = gone + tonumber(amount)
    return '0'
  end)
  return head .. leaves, gone
end

local leaving = {}
local function plan_book(p)
  local f = redis.call('HMGET', p.key, 'budget', 'lent', 'clock', 'time', 'replid', 'learnUntil', 'leaseMs', 'round',
    'spare')
  local created, lent, clock, learn, round, spare = not f[1], 0, now, 0, 0, 0
  if created then
    local empty = redis.call('DEL', p.key) == 0
    if not (p.first and empty) then learn, round = clock + p.lease + HOLD, 2 end
  else
    lent, clock = tonumber(f[2]), advance(tonumber(f[3]), tonumber(f[4]))
    learn, round, spare = learning(tonumber(f[6]), tonumber(f[8]) or 0, tonumber(f[9]) or 0, f[5], replid, tonumber(f[4]),
      clock, math.max(tonumber(f[7]), p.lease))
  end

  local function member(who, text)
    if who.finished > 0 then leaving[who.id] = true end
    if not text then return end
    -- What stays as it is stays text: this runs for every member at every tick.
    local seq, old, calls, until_text, off_text, ended_text, rest =
      string.match(text, '^(%S+) (%S+) (%S+ %S+) (%S+) (%S+) %S+ (%S+) (.*)$')
    local record, until_, off, ended = tonumber(old), tonumber(until_text), tonumber(off_text), tonumber(ended_text)
    local leased = clock < until_
    if who.finished > 0 and ended == 0 then
      ended = clock
      -- What left before the process ended made room for what it may have spent since it said so.
      local as_of = tonumber(string.match(rest, '^%S+ %S+ %S+ (%S+)'))
      rest = take_steps(rest, math.ceil((who.finished + END_SLACK - as_of) / LEAVE_STEP))
    end
    if ended > 0 and clock >= ended + HOLD and not leased then
      lent, leaving[who.id] = lent - record, true
      return nil, true
    end
    if ended > 0 and not leased then
      -- What it said in its last call: so much has left its window since.
      local gone
      rest, gone = take_steps(rest, math.floor((clock - ended - LEAVE_SLACK) / LEAVE_STEP))
      gone = math.min(gone, record)
      lent, record = lent - gone, record - gone
    end
    if ended == 0 and clock >= until_ + HOLD and record > off then
      lent, record = lent - record + off, off
    end
    local new = table.concat({ seq, int(record), calls, until_text, off_text, int(who.share), int(ended), rest }, ' ')
    return new ~= text and new or nil
  end

  for from = 1, #p.members, CHUNK do
    local fields, writes, drops = {}, {}, {}
    for i = from, math.min(from + CHUNK - 1, #p.members) do fields[#fields + 1] = 'm:' .. p.members[i].id end
    local texts = redis.call('HMGET', p.key, unpack(fields))
    for i, field in ipairs(fields) do
      local new, drop = member(p.members[from + i - 1], texts[i])
      if drop then
        drops[#drops + 1] = field
      elseif new then
        writes[#writes + 1] = field
        writes[#writes + 1] = new
      end
    end
    if #writes > 0 then redis.call('HSET', p.key, unpack(writes)) end
    if #drops > 0 then redis.call('HDEL', p.key, unpack(drops)) end
  end

  redis.call('HSET', p.key, 'budget', int(p.budget), 'lent', int(lent), 'aside', int(p.aside), 'level', int(p.level),
    'safe', int(p.safe), 'leaseMs', int(p.lease), 'clock', int(clock), 'time', int(now), 'replid', replid, 'learnUntil', int(learn),
    'round', int(round), 'spare', int(spare))
  if created then redis.call('HSET', p.key, 'claims', '') end
  redis.call('EXPIRE', p.key, TTL)
  return { int(clock), int(p.budget), int(lent), int(p.aside), int(p.budget - lent - p.aside),
    clock < learn and '1' or '0', created and '1' or '0' }
end

local answers = {}
for i, p in ipairs(plans) do answers[i] = plan_book(p) end

-- A member whose records went from every book has nothing left to report.
local dropped = {}
for id in pairs(leaving) do
  local held = false
  for i = 3, #KEYS do held = held or redis.call('HEXISTS', KEYS[i], 'm:' .. id) == 1 end
  if not held and redis.call('HDEL', KEYS[2], id) == 1 then dropped[#dropped + 1] = id end
end
redis.call('EXPIRE', KEYS[1], TTL)
redis.call('EXPIRE', KEYS[2], TTL)
return { 'ok', answers, dropped }
