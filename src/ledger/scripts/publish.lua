-- The policy.   KEYS: meta, books to delete...   ARGV: epoch version policy
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'policy', ARGV[3])
redis.call('EXPIRE', KEYS[1], TTL)
for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
return { 'ok' }
