"""The index's scripts. Each names all its keys, which lie in one slot of a Redis Cluster.

A write's keys are: fence, holders, the holder, and a scratch key; its first arguments: token,
holder, ttl in ms. Epochs are compared as decimal text, for a Lua number holds only 53 bits; tokens
are microseconds and fit. Only commands and types of Redis 7.0 are used.
"""

from __future__ import annotations

FENCED = "FENCED"

# The lease. KEYS: lease. ARGV: owner, ttl in ms, a token that a new one must exceed.
LEASE = """
local held = redis.call('GET', KEYS[1])
local token, owner
if held then token, owner = string.match(held, '^(%d+) (.*)$') end
if owner and owner ~= ARGV[1] then return false end
local floor = tonumber(ARGV[3])
if owner and tonumber(token) > floor then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return token
end
local time = redis.call('TIME')
local fresh = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), floor + 1)
token = string.format('%.0f', fresh)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[2])
return token
"""

# One shard's fence: the higher token wins. KEYS: fence. ARGV: token, ttl in ms. Answers what
# was there before.
FENCE = """
local held = redis.call('GET', KEYS[1]) or '0'
if tonumber(held) > tonumber(ARGV[1]) then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return held
"""

_CHECK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
"""

_EPOCH = """
local function is_newer(a, b) return #a > #b or (#a == #b and a > b) end
local at = redis.call('HGET', KEYS[3], 'at')
local epoch, made = string.match(at or '', '^(%d+).* (%d+)$')
"""

_FILL = """
local function fill(key, first)
  local words = {}
  for i = first, #ARGV do
    words[#words + 1] = ARGV[i]
    words[#words + 1] = ''
  end
  if #words > 0 then redis.call('HSET', key, unpack(words)) end
end
"""

_KEEP = """
local function keep(time, ttl)
  local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
  redis.call('PEXPIRE', KEYS[3], ttl)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
  redis.call('ZADD', KEYS[2], now + ttl, ARGV[2])
  if redis.call('PTTL', KEYS[2]) < ttl then redis.call('PEXPIRE', KEYS[2], ttl) end
end
"""

# ARGV: token, holder, ttl, epoch, position or '' when more pages follow, HSET or HDEL, hashes...
# 0 when the holder is not there in this epoch.
CHANGE = (
    _CHECK
    + _EPOCH
    + _FILL
    + _KEEP
    + """
if not epoch or is_newer(ARGV[4], epoch) then return 0 end
if epoch ~= ARGV[4] then return 1 end
if ARGV[6] == 'HSET' then
  fill(KEYS[3], 7)
elseif #ARGV > 6 then
  redis.call('HDEL', KEYS[3], unpack(ARGV, 7))
end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[3], 'at', ARGV[5] .. ' ' .. made) end
keep(redis.call('TIME'), tonumber(ARGV[3]))
return 1
"""
)

# ARGV: token, holder, ttl, epoch, position or '' when more pages follow, '1' for the first page,
# hashes... The new content is made aside, so that no reader sees a part of it.
REPLACE = (
    _CHECK
    + _EPOCH
    + _FILL
    + _KEEP
    + """
if epoch and is_newer(epoch, ARGV[4]) then return 1 end
if ARGV[6] == '1' then redis.call('DEL', KEYS[4]) end
fill(KEYS[4], 7)
if ARGV[5] == '' then
  redis.call('PEXPIRE', KEYS[4], ARGV[3])
  return 1
end
local time = redis.call('TIME')
local made = string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
redis.call('HSET', KEYS[4], 'at', ARGV[5] .. ' ' .. made)
redis.call('RENAME', KEYS[4], KEYS[3])
keep(time, tonumber(ARGV[3]))
return 1
"""
)

# ARGV: token, holder, ttl, epoch: what is older goes.
SET_EPOCH = (
    _CHECK
    + _EPOCH
    + """
if epoch and is_newer(ARGV[4], epoch) then redis.call('UNLINK', KEYS[3]) end
return 1
"""
)

DROP = (
    _CHECK
    + """
redis.call('UNLINK', KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[2])
return 1
"""
)

# KEYS: holders' hashes. Their positions.
POSITIONS = """
local found = {}
for i = 1, #KEYS do found[i] = redis.call('HGET', KEYS[i], 'at') end
return found
"""

# KEYS: holders' hashes. ARGV: blocks. How many each has from the first on.
LOOKUP = """
local counts = {}
for i = 1, #KEYS do
  local count = 0
  if redis.call('HEXISTS', KEYS[i], ARGV[1]) == 1 then
    local found = redis.call('HMGET', KEYS[i], unpack(ARGV))
    while found[count + 1] do count = count + 1 end
  end
  counts[i] = count
end
return counts
"""
