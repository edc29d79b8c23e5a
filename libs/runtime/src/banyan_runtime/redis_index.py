"""The index on Redis 7.0 or Valkey: a hint that answers fast or not at all.

Keys, under one prefix: `lease` (token and owner, with a time-to-live), `fence` (the last token
given), `epochs` (holder -> epoch and generation), `generation` (a counter), and one hash per
block (holder -> generation) with a time-to-live. A block's entry counts only while its
generation is the holder's present one, so a restart or a loss of a holder is one write, however
many blocks it had. Every write is one script that checks the fencing token first.

Tokens start from the server's clock: a server that lost its content never gives an old one again.
Epochs are compared as decimal text, for a Lua number holds only 53 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from banyan_core.types import BlockHash
from banyan_runtime.kv_index import Fenced, IndexUnavailable
from banyan_runtime.redis_client import UNREACHABLE, call, connect

_PAGE = 512  # hashes in one script call; Lua's unpack and one call's time are bounded
_FENCED = "FENCED"

_ACQUIRE = """
local held = redis.call('GET', KEYS[1])
if held then
  local token, owner = string.match(held, '^(%d+) (.*)$')
  if owner ~= ARGV[1] then return false end
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return token
end
local time = redis.call('TIME')
local token = tonumber(time[1]) * 1000000 + tonumber(time[2])
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
token = string.format('%.0f', math.max(token, last + 1))
redis.call('SET', KEYS[2], token)
redis.call('SET', KEYS[1], token .. ' ' .. ARGV[1], 'PX', ARGV[2])
return token
"""

# KEYS: fence, epochs, generation, blocks...; ARGV: token, holder, ...
_CHECK = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return redis.error_reply('FENCED') end
"""

_RAISE_EPOCH = """
local known = redis.call('HGET', KEYS[2], ARGV[2])
local epoch, generation
if known then epoch, generation = string.match(known, '^(%d+) (%d+)$') end
local wanted = ARGV[3]
if not epoch or #wanted > #epoch or (#wanted == #epoch and wanted > epoch) then
  epoch, generation = wanted, string.format('%.0f', redis.call('INCR', KEYS[3]))
  redis.call('HSET', KEYS[2], ARGV[2], epoch .. ' ' .. generation)
end
"""

_ADD = (
    _CHECK
    + _RAISE_EPOCH
    + """
if epoch ~= wanted then return 0 end
local ttl = tonumber(ARGV[4])
for i = 4, #KEYS do
  redis.call('HSET', KEYS[i], ARGV[2], generation)
  if redis.call('PTTL', KEYS[i]) < ttl then redis.call('PEXPIRE', KEYS[i], ttl) end
end
return 1
"""
)

_SET_EPOCH = _CHECK + _RAISE_EPOCH + "return 1"

_REMOVE = (
    _CHECK
    + """
for i = 4, #KEYS do redis.call('HDEL', KEYS[i], ARGV[2]) end
return 1
"""
)

_DROP = _CHECK + "return redis.call('HDEL', KEYS[2], ARGV[2])"

_LOOKUP = """
local generations = {}
local epochs = redis.call('HGETALL', KEYS[1])
for i = 1, #epochs, 2 do generations[epochs[i]] = string.match(epochs[i + 1], ' (%d+)$') end
local counts, found = {}, {}
for place = 1, #KEYS - 1 do
  local block = redis.call('HGETALL', KEYS[place + 1])
  local alive = false
  for i = 1, #block, 2 do
    local holder = block[i]
    if generations[holder] == block[i + 1] and (counts[holder] or 0) == place - 1 then
      if place == 1 then found[#found + 1] = holder end
      counts[holder] = place
      alive = true
    end
  end
  if not alive then break end
end
local answer = {}
for _, holder in ipairs(found) do
  answer[#answer + 1] = holder
  answer[#answer + 1] = counts[holder]
end
return answer
"""


class RedisKvIndex:
    """One process's access to the index. Lookups and writes have connections of their own."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "banyan:kv",
        lookup_timeout_s: float = 0.1,
        write_timeout_s: float = 1.0,
    ) -> None:
        self._prefix = prefix.encode()
        self._fast = connect(url, lookup_timeout_s)
        self._slow = connect(url, write_timeout_s)
        self._lookup = _Script(self._fast, _LOOKUP)
        self._acquire = _Script(self._slow, _ACQUIRE)
        self._add = _Script(self._slow, _ADD)
        self._remove = _Script(self._slow, _REMOVE)
        self._set_epoch = _Script(self._slow, _SET_EPOCH)
        self._drop = _Script(self._slow, _DROP)

    async def acquire(self, owner: str, ttl_s: float) -> int | None:
        keys = [self._key(b"lease"), self._key(b"fence")]
        token = await self._acquire.call(keys, [owner, max(1, round(ttl_s * 1000))])
        return None if token is None else int(token)

    async def add(
        self, fence: int, holder: str, epoch: int, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        args = [fence, holder, epoch, max(1, round(ttl_s * 1000))]
        for page in _pages(hashes):
            await self._add.call(self._write_keys(page), args)

    async def remove(self, fence: int, holder: str, hashes: Sequence[BlockHash]) -> None:
        for page in _pages(hashes):
            await self._remove.call(self._write_keys(page), [fence, holder])

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        await self._set_epoch.call(self._write_keys(()), [fence, holder, epoch])

    async def drop_holder(self, fence: int, holder: str) -> None:
        await self._drop.call(self._write_keys(()), [fence, holder])

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        counts: dict[str, int] = {}
        for start in range(0, len(hashes), _PAGE):
            page = hashes[start : start + _PAGE]
            keys = [self._key(b"epochs"), *map(self._block_key, page)]
            answer = await self._lookup.call(keys, [])
            found = {answer[i].decode(): int(answer[i + 1]) for i in range(0, len(answer), 2)}
            for holder, count in found.items():
                if start == 0 or counts.get(holder) == start:
                    counts[holder] = start + count
            if len(page) not in found.values():
                break
        return counts

    async def close(self) -> None:
        await self._fast.aclose()
        await self._slow.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _key(self, name: bytes) -> bytes:
        return self._prefix + b":" + name

    def _block_key(self, block_hash: BlockHash) -> bytes:
        return self._prefix + b":b:" + block_hash

    def _write_keys(self, hashes: Sequence[BlockHash]) -> list[bytes]:
        names = (b"fence", b"epochs", b"generation")
        return [*map(self._key, names), *map(self._block_key, hashes)]


class _Script:
    """A script by its digest, loaded when the server does not know it."""

    def __init__(self, client: Redis, source: str) -> None:
        self._script = client.register_script(source)

    async def call(self, keys: Sequence[bytes], args: Sequence[Any]) -> Any:
        try:
            return await call(self._script(keys=keys, args=args))
        except ResponseError as error:
            if _FENCED in str(error):
                raise Fenced(f"the lease with token {args[0]} is over") from None
            raise IndexUnavailable(str(error)) from error
        except UNREACHABLE as error:
            raise IndexUnavailable(f"{type(error).__name__}: {error}") from error


def _pages(hashes: Sequence[BlockHash]) -> list[Sequence[BlockHash]]:
    """At least one: a write of no blocks still has its fence checked and tells its epoch."""
    return [hashes[:_PAGE]] + [hashes[i : i + _PAGE] for i in range(_PAGE, len(hashes), _PAGE)]
