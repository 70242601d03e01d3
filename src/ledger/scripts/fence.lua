-- Only the operator that claimed last may write. ARGV[1] is its epoch, KEYS[1] is meta.
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'version')
if meta[1] ~= ARGV[1] then return { 'fenced' } end
