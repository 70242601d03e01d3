-- The one call of a member: beat, draw or leave. The contract is docs/protocol.md; common.lua comes before this text.
-- KEYS: meta, members, books...   ARGV: member seq final version report, then per book: keep want least spent denied off,
-- then per book: asOf and leaves
local CLAIM_SLOT, CLAIM_SLOTS = 250, 4
-- seq record until share claim claimSlot round, out of what is stored for a member.
local MEMBER = '^(%d+) (%d+) %d+ %d+ (%d+) %d+ (%d+) %d+ (%d+) (%d+) ?(%d*)'

local LONG = string.rep('%d', 16)

local member, seq, final = ARGV[1], whole(ARGV[2], 2 ^ 53), ARGV[3] == '1'
local field = 'm:' .. member
if #ARGV ~= 5 + 7 * (#KEYS - 2) then error('7 arguments for each book, not ' .. (#ARGV - 5)) end
local figures = 5 + 6 * (#KEYS - 2)
local amounts = wholes(6, figures, MOST)
local replid, seq_text = replication_id(), int(seq)

-- When a member said it, and how much of its window leaves it in each of the next steps: stored as it came.
local function steps(text)
  local _, count = string.gsub(text, '%d+', '')
  if count < 1 or count > 1 + LEAVE_STEPS or string.find(text, '[^%d ]') or string.find(text, LONG) then
    error('not a time and at most ' .. LEAVE_STEPS .. ' amounts: ' .. text)
  end
  return text
end
local leaves = {}
for i = figures + 1, #ARGV do leaves[i - figures] = steps(ARGV[i]) end

-- What members below their share were refused in the last second: {slot = amount}, and the sum.
local function live_claims(text, clock)
  local claims, sum, oldest = {}, 0, math.floor(clock / CLAIM_SLOT) - CLAIM_SLOTS
  for slot, amount in string.gmatch(text or '', '(%d+):(%d+)') do
    if tonumber(slot) >= oldest then
      claims[tonumber(slot)] = tonumber(amount)
      sum = sum + tonumber(amount)
    end
  end
  return claims, sum
end

local function settle_book(key, leaving, keep, want, least, spent, denied, off)
  local f = redis.call('HMGET', key, 'budget', 'lent', 'aside', 'safe', 'leaseMs', 'clock', 'time', 'replid',
    'learnUntil', 'round', 'spare', 'claims', field, 'level')
  if not f[1] then return { 'none', '0', '0', '0', '0', '0' } end
  local budget, was_lent, aside, safe, lease = f[1] + 0, f[2] + 0, f[3] + 0, f[4] + 0, f[5] + 0
  local since, was_learn, was_round, was_spare = f[7] + 0, f[9] + 0, tonumber(f[10]), tonumber(f[11])
  local lent, clock = was_lent, advance(f[6] + 0, since)
  local learn, round, spare =
    learning(was_learn, was_round or 0, was_spare or 0, f[8], replid, since, clock, lease)

  local m = { string.match(f[13] or '', MEMBER) }
  local old_seq, old, until_, share = tonumber(m[1]) or -1, tonumber(m[2]) or 0, tonumber(m[3]) or 0, tonumber(m[4]) or safe
  local claim, claim_slot, registered = tonumber(m[5]) or 0, tonumber(m[6]) or 0, tonumber(m[7]) or -1
  if seq <= old_seq then
    return { 'stale', int(old), int(share), int(budget - lent - aside), f[1], f[4] }
  end

  -- Should this answer get lost, the member admits up to the off that it sent: the record covers it.
  local record = math.min(keep, math.max(old, spent, math.min(off, keep)))
  -- Whoever it lost says what it holds, and is believed: it was lent that.
  if clock < learn and not m[1] then record = keep end
  lent = lent - old + record
  local pool = budget - lent - aside

  -- A call that was on its way when the ledger was lost says what its member held then: the second one registers.
  local registers = registered >= round - 1 and round or round - 1
  -- While it learns, the ledger lends only what members that have registered since then gave back.
  local learns, free = clock < learn, math.max(0, pool)
  if not learns then
    spare = 0
  else
    if registered == round then spare = spare + math.max(0, old - record) end
    free = math.min(free, spare)
  end

  local entitled = math.max(share, tonumber(f[14]) or 0)
  local claims, claimed = live_claims(f[12], clock)
  if claims[claim_slot] then
    claims[claim_slot] = math.max(0, claims[claim_slot] - claim)
    claimed = math.max(0, claimed - claim)
  end

  if not final and want > record and free > 0 then
    local fair = math.min(math.max(0, math.min(want, entitled) - record), free)
    local above = math.max(0, want - math.max(record, entitled))
    local lend = fair + math.min(above, math.max(0, free - fair - claimed))
    -- A part of what a request needs is of no use to it, and may be the rest of another's.
    if record + lend < least then lend = 0 end
    record, lent, pool = record + lend, lent + lend, pool - lend
    if learns then spare = spare - lend end
  end

  claim, claim_slot = 0, 0
  local short = math.min(want, entitled) - record
  if short > 0 and not final then
    claim, claim_slot = short, math.floor(clock / CLAIM_SLOT)
    claims[claim_slot] = (claims[claim_slot] or 0) + short
  end
  local text = ''
  for slot, amount in pairs(claims) do
    if amount > 0 then text = text .. (text == '' and '' or ' ') .. slot .. ':' .. amount end
  end

  until_ = final and clock or math.max(until_, clock + lease)
  local ended = final and clock or 0
  -- Only what changed is written: most calls are beats of members whose grants stay as they are.
  local set = { 'HSET', key, 'clock', clock, 'time', now, field, seq_text .. ' ' .. record .. ' ' .. spent .. ' ' .. denied
    .. ' ' .. until_ .. ' ' .. off .. ' ' .. share .. ' ' .. ended .. ' ' .. claim .. ' ' .. claim_slot .. ' ' .. registers
    .. ' ' .. leaving }
  local function also(name, new, was)
    if new ~= was then
      set[#set + 1] = name
      set[#set + 1] = new
    end
  end
  also('lent', lent, was_lent)
  also('replid', replid, f[8])
  also('learnUntil', learn, was_learn)
  also('round', round, was_round)
  also('spare', spare, was_spare)
  also('claims', text, f[12])
  redis.call(unpack(set))
  redis.call('EXPIRE', key, TTL)

  -- A cut has to bite while learning, too.
  local state = pool < 0 and 'contended' or (learns and 'learning' or 'ok')
  return { state, int(record), int(share), int(pool), f[1], f[4] }
end

local books, stale = {}, false
for i = 3, #KEYS do
  local a = 5 + (i - 3) * 6
  local book = settle_book(KEYS[i], leaves[i - 2], amounts[a + 1], amounts[a + 2], amounts[a + 3], amounts[a + 4], amounts[a + 5],
    amounts[a + 6])
  stale = stale or book[1] == 'stale'
  books[#books + 1] = book
end

-- The policy is long, and hardly ever asked for.
local version, policy = redis.call('HGET', KEYS[1], 'version') or '', ''
if version ~= '' and version ~= ARGV[4] then policy = redis.call('HGET', KEYS[1], 'policy') or '' end
-- After a close what is left has to go in time.
if version ~= CLOSED then
  if ARGV[5] ~= '' and not stale then redis.call('HSET', KEYS[2], member, ARGV[5]) end
  redis.call('EXPIRE', KEYS[1], TTL)
  redis.call('EXPIRE', KEYS[2], version ~= '' and TTL or CLOSED_TTL)
end
return { version, policy, books, int(now) }
