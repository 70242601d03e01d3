-- The one call of a member: beat, draw or leave. The contract is docs/protocol.md; common.lua comes before this text.
-- KEYS: meta, members, books...   ARGV: member seq final version report, then per book: keep want spent denied off
local CLAIM_SLOT, CLAIM_SLOTS = 250, 4

local member, seq, final = ARGV[1], whole(ARGV[2], 2 ^ 53), ARGV[3] == '1'
local field = 'm:' .. member
if #ARGV ~= 5 + 5 * (#KEYS - 2) then error('five arguments for each book, not ' .. (#ARGV - 5)) end
local amounts = {}
for i = 6, #ARGV do amounts[i] = whole(ARGV[i], MOST) end
local replid = replication_id()

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

local function settle_book(key, keep, want, spent, denied, off)
  local f = redis.call('HMGET', key, 'budget', 'lent', 'aside', 'safe', 'leaseMs', 'clock', 'time', 'replid',
    'learnUntil', 'claims', field)
  if not f[1] then return { 'none', '0', '0', '0', '0', '0' } end
  local budget, lent, aside, safe, lease = tonumber(f[1]), tonumber(f[2]), tonumber(f[3]), tonumber(f[4]), tonumber(f[5])
  local clock = advance(tonumber(f[6]), tonumber(f[7]))
  local learn = learning_end(tonumber(f[9]), f[8], replid, clock, lease)

  local m = words(f[11])
  local old_seq, old, until_, share, claim, claim_slot =
    m[1] or -1, m[2] or 0, m[5] or 0, m[7] or safe, m[9] or 0, m[10] or 0
  if seq <= old_seq then
    return { 'stale', int(old), int(share), int(budget - lent - aside), int(budget), int(safe) }
  end

  -- Should this answer get lost, the member admits up to the off that it sent: the record covers it.
  off = math.min(off, keep)
  local record = math.min(keep, math.max(old, spent, off))
  lent = lent - old + record
  local pool = budget - lent - aside

  local claims, claimed = live_claims(f[10], clock)
  if claims[claim_slot] then
    claims[claim_slot] = math.max(0, claims[claim_slot] - claim)
    claimed = math.max(0, claimed - claim)
  end

  local learning = clock < learn
  if not final and not learning and want > record and pool > 0 then
    local fair = math.min(math.max(0, math.min(want, share) - record), pool)
    local above = math.max(0, want - math.max(record, share))
    local lend = fair + math.min(above, math.max(0, pool - fair - claimed))
    record, lent, pool = record + lend, lent + lend, pool - lend
  end

  claim, claim_slot = 0, 0
  local short = math.min(want, share) - record
  if short > 0 and not final then
    claim, claim_slot = short, math.floor(clock / CLAIM_SLOT)
    claims[claim_slot] = (claims[claim_slot] or 0) + short
  end
  local texts = {}
  for slot, amount in pairs(claims) do
    if amount > 0 then texts[#texts + 1] = int(slot) .. ':' .. int(amount) end
  end

  until_ = final and clock or math.max(until_, clock + lease)
  local ended = final and clock or 0
  redis.call('HSET', key, 'lent', int(lent), 'clock', int(clock), 'time', int(now), 'replid', replid,
    'learnUntil', int(learn), 'claims', table.concat(texts, ' '),
    field, table.concat({ int(seq), int(record), int(spent), int(denied), int(until_), int(off), int(share),
      int(ended), int(claim), int(claim_slot) }, ' '))
  redis.call('EXPIRE', key, TTL)

  -- A cut has to bite while learning, too.
  local state = pool < 0 and 'contended' or (learning and 'learning' or 'ok')
  return { state, int(record), int(share), int(pool), int(budget), int(safe) }
end

local books, stale = {}, false
for i = 3, #KEYS do
  local a = 5 + (i - 3) * 5
  local book = settle_book(KEYS[i], amounts[a + 1], amounts[a + 2], amounts[a + 3], amounts[a + 4], amounts[a + 5])
  stale = stale or book[1] == 'stale'
  books[#books + 1] = book
end

local meta = redis.call('HMGET', KEYS[1], 'version', 'policy')
local version, policy = meta[1] or '', ''
if version ~= '' and version ~= ARGV[4] then policy = meta[2] or '' end
-- After a close what is left has to go in time.
if version ~= CLOSED then
  if ARGV[5] ~= '' and not stale then redis.call('HSET', KEYS[2], member, ARGV[5]) end
  redis.call('EXPIRE', KEYS[1], TTL)
  redis.call('EXPIRE', KEYS[2], version ~= '' and TTL or CLOSED_TTL)
end
return { version, policy, books }
