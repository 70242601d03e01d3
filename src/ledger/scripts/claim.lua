-- Take-over by an operator.   KEYS: meta
-- The server's time makes an epoch unique even after a flush: one that counts from 1 again would let an old leader in.
local old = redis.call('HMGET', KEYS[1], 'epoch', 'version')
local epoch = math.max((tonumber(old[1]) or 0) + 1, now)
redis.call('HSET', KEYS[1], 'epoch', int(epoch))
redis.call('EXPIRE', KEYS[1], old[2] == CLOSED and CLOSED_TTL or TTL)
return { 'ok', int(epoch) }
