-- The end of a TokenBudget.   KEYS: meta, members, books...   ARGV: epoch
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
redis.call('HSET', KEYS[1], 'version', CLOSED, 'policy', '{"version":"' .. CLOSED .. '","mode":"Detached"}')
redis.call('EXPIRE', KEYS[1], CLOSED_TTL)
return { 'ok' }
