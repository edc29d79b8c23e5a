"""The index on Redis 7.0, Valkey, or a Redis Cluster of either: a hint that answers fast or not.

Keys, under one prefix. The `lease`: token and owner. Then per shard, with the shard's number as
hash tag, so that all of a shard lies in one slot: its `fence` (the highest token that it has seen),
its `holders` (each with the instant at which it ends), and one hash per holder, whose fields are
its blocks, and `at`: how far its story is contained. A holder's shard follows from its name, so the
writer needs nothing but what it is told, a holder's epoch changes in one write, and what is true of
a holder (its blocks, their position, their end) is one key that lives and dies as a whole.

Every write is one script that checks the fence of the shard in which it writes. Who takes the lease
raises the fence of every shard before it writes: after that no older writer can write anywhere.
Tokens start from the server's clock and exceed every fence that is left, so a server that lost its
content never gives an old one again. A single server has one shard, a cluster several.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Self, TypeVar
from zlib import crc32

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, ResponseError

from banyan_core.index_facts import Position
from banyan_core.types import BlockHash
from banyan_runtime import redis_scripts as scripts
from banyan_runtime.kv_index import Fenced, IndexUnavailable, Loaded
from banyan_runtime.redis_client import UNREACHABLE, call, connect, connect_cluster, is_cluster

T = TypeVar("T")

CLUSTER_SHARDS = 8
_PAGE = 512  # hashes in one script call; Lua's unpack and one call's time are bounded
_SCAN = 4096
_FENCE_TTL_MS = 24 * 3600 * 1000
_ACQUIRE_ATTEMPTS = 3
_AT = b"at"  # no block: hashes have 16 bytes


class RedisKvIndex:
    """One process's access to the index. Raises ValueError when `url` is none."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "banyan:kv",
        lookup_timeout_s: float = 0.1,
        write_timeout_s: float = 1.0,
    ) -> None:
        cluster = is_cluster(url)
        self._prefix = prefix
        self._shards = tuple(range(CLUSTER_SHARDS if cluster else 1))
        self._lookup_timeout_s = lookup_timeout_s
        self._timeout_s = write_timeout_s
        self._client: Redis | RedisCluster = (
            connect_cluster(url, write_timeout_s) if cluster else connect(url, write_timeout_s)
        )
        self._token: int | None = None  # the last whose fence is in every shard

    # ------------------------------------------------------------ the writer

    async def acquire(self, owner: str, ttl_s: float) -> int | None:
        floor = 0
        for _ in range(_ACQUIRE_ATTEMPTS):
            taken = await self._run(_LEASE, [self._key("lease")], [owner, _ms(ttl_s), floor])
            if taken is None:
                return None
            token = int(taken)
            before = await self._raise_fences(token)
            if max(before) > token:  # the server that gives tokens lost its content, or its clock
                floor = max(before)
            elif token == self._token and min(before) < token:
                floor = token  # a shard lost its content: let the writer see a new token
            else:
                self._token = token
                return token
        return None

    async def _raise_fences(self, token: int) -> list[int]:
        """The token that each shard had before."""
        before = await _all(
            self._run(_FENCE, [self._key("fence", shard)], [token, _FENCE_TTL_MS])
            for shard in self._shards
        )
        return [int(held) for held in before]

    async def add(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        return await self._change("HSET", fence, holder, at, hashes, ttl_s)

    async def remove(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> bool:
        return await self._change("HDEL", fence, holder, at, hashes, ttl_s)

    async def _change(
        self,
        verb: str,
        fence: int,
        holder: str,
        at: Position,
        hashes: Sequence[BlockHash],
        ttl_s: float,
    ) -> bool:
        """The position comes with the last page: until then it says less than is there."""
        pages = _pages(hashes)
        for number, page in enumerate(pages, start=1):
            position = _position_text(at) if number == len(pages) else ""
            args = [fence, holder, _ms(ttl_s), at.epoch, position, verb, *page]
            if not await self._run(_CHANGE, self._write_keys(holder), args):
                return False
        return True

    async def replace(
        self, fence: int, holder: str, at: Position, hashes: Sequence[BlockHash], ttl_s: float
    ) -> None:
        pages = _pages(hashes)
        for number, page in enumerate(pages, start=1):
            position = _position_text(at) if number == len(pages) else ""
            first = "1" if number == 1 else ""
            args = [fence, holder, _ms(ttl_s), at.epoch, position, first, *page]
            await self._run(_REPLACE, self._write_keys(holder), args)

    async def set_epoch(self, fence: int, holder: str, epoch: int) -> None:
        await self._run(_SET_EPOCH, self._write_keys(holder), [fence, holder, 0, epoch])

    async def drop_holder(self, fence: int, holder: str) -> None:
        await self._run(_DROP, self._write_keys(holder), [fence, holder])

    # ------------------------------------------------------------ readers

    async def lookup(self, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        if not hashes:
            return {}
        try:
            async with asyncio.timeout(self._lookup_timeout_s):
                found = await _all(self._lookup_in(shard, hashes) for shard in self._shards)
        except TimeoutError:
            raise IndexUnavailable(f"no answer within {self._lookup_timeout_s:g} s") from None
        return {holder: count for part in found for holder, count in part.items()}

    async def _lookup_in(self, shard: int, hashes: Sequence[BlockHash]) -> Mapping[str, int]:
        going = await self._holders(shard)
        counts: dict[str, int] = {}
        for start in range(0, len(hashes), _PAGE):
            if not going:
                break
            page = hashes[start : start + _PAGE]
            answer = await self._run(_LOOKUP, self._holder_keys(shard, going), page)
            found = dict(zip(going, answer, strict=True))
            counts.update({holder: start + count for holder, count in found.items() if count})
            going = [holder for holder in going if found[holder] == len(page)]
        return counts

    async def positions(self) -> Mapping[str, Position]:
        found = await _all(self._positions_in(shard) for shard in self._shards)
        return {holder: at for part in found for holder, at in part.items()}

    async def _positions_in(self, shard: int) -> Mapping[str, Position]:
        holders = await self._holders(shard)
        if not holders:
            return {}
        answer = await self._run(_POSITIONS, self._holder_keys(shard, holders), [])
        found = zip(holders, answer, strict=True)
        return {holder: _position(text)[0] for holder, text in found if text is not None}

    async def load(self, holder: str) -> Loaded | None:
        """Page by page. Blocks that change meanwhile may be seen before or after the change."""
        key = self._holder_key(holder)
        before = await self._ask(self._client.execute_command("HGET", key, _AT))
        hashes: dict[BlockHash, None] = {}
        cursor = 0
        while True:
            page = self._client.execute_command("HSCAN", key, cursor, "COUNT", _SCAN)
            next_cursor, fields = await self._ask(page)
            hashes.update(dict.fromkeys(fields))
            cursor = int(next_cursor)
            if cursor == 0:
                break
        after = await self._ask(self._client.execute_command("HGET", key, _AT))
        if before is None or after is None:
            return None
        (at, made), (at_end, made_at_end) = _position(before), _position(after)
        if (at.epoch, made) != (at_end.epoch, made_at_end):
            return None
        hashes.pop(_AT, None)
        return Loaded(at, tuple(hashes))

    async def _holders(self, shard: int) -> list[str]:
        """Also some that have ended: their keys are gone."""
        names = await self._ask(
            self._client.execute_command("ZRANGE", self._key("holders", shard), 0, -1)
        )
        return [name.decode() for name in names]

    async def close(self) -> None:
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # ------------------------------------------------------------ keys and calls

    def _key(self, name: str, shard: int | None = None) -> str:
        tag = self._prefix if shard is None else f"{self._prefix}:{shard}"
        return f"{{{tag}}}:{name}"

    def _shard_of(self, holder: str) -> int:
        return crc32(holder.encode()) % len(self._shards)

    def _holder_key(self, holder: str) -> str:
        return self._key(f"holder:{holder}", self._shard_of(holder))

    def _holder_keys(self, shard: int, holders: Sequence[str]) -> list[str]:
        return [self._key(f"holder:{holder}", shard) for holder in holders]

    def _write_keys(self, holder: str) -> list[str]:
        shard = self._shard_of(holder)
        shared = [self._key(name, shard) for name in ("fence", "holders")]
        return [*shared, self._holder_key(holder), self._key("scratch", shard)]

    async def _run(self, script: _Script, keys: Sequence[str], args: Sequence[Any]) -> Any:
        words = (len(keys), *keys, *args)
        try:
            return await self._ask(self._client.execute_command("EVALSHA", script.sha, *words))
        except NoScriptError:
            return await self._ask(self._client.execute_command("EVAL", script.source, *words))

    async def _ask(self, command: Awaitable[T]) -> T:
        try:
            return await call(command, self._timeout_s)
        except NoScriptError:
            raise
        except ResponseError as error:
            if scripts.FENCED in str(error):
                raise Fenced("the lease is over: a newer token is known") from None
            raise IndexUnavailable(str(error)) from error
        except UNREACHABLE as error:
            raise IndexUnavailable(f"{type(error).__name__}: {error}") from error


class _Script:
    """A script and its name on the server, which learns it when it does not know it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


_LEASE = _Script(scripts.LEASE)
_FENCE = _Script(scripts.FENCE)
_CHANGE = _Script(scripts.CHANGE)
_REPLACE = _Script(scripts.REPLACE)
_SET_EPOCH = _Script(scripts.SET_EPOCH)
_DROP = _Script(scripts.DROP)
_POSITIONS = _Script(scripts.POSITIONS)
_LOOKUP = _Script(scripts.LOOKUP)


async def _all(calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The answers of all, asked at once; none is left behind when one fails."""
    waiting = list(calls)
    if len(waiting) == 1:
        return [await waiting[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in waiting]
    except* (IndexUnavailable, Fenced) as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _position_text(at: Position) -> str:
    return f"{at.epoch} {at.seq} {int(at.stale)}"


def _position(text: bytes) -> tuple[Position, int]:
    """A position, and when its holder's hash was made: another hash, another time."""
    epoch, seq, stale, made = map(int, text.split())
    return Position(epoch, seq, bool(stale)), made


def _pages(hashes: Sequence[BlockHash]) -> list[Sequence[BlockHash]]:
    """At least one: a write of no blocks still has its fence checked and tells its position."""
    return [hashes[:_PAGE]] + [hashes[i : i + _PAGE] for i in range(_PAGE, len(hashes), _PAGE)]
