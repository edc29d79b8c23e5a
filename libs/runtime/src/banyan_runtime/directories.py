"""Where peers are found: fixed, by DNS, or in a file that the supervisor writes.

One setting names the way: `static:prefill=h:p,h:p;decode=h:p`, `dns:prefill=name:port;...` or
`file:/path`. There is no default: a mesh that guesses its peers finds the wrong ones.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from banyan_runtime.directory import Directory
from banyan_runtime.settings import Parsed

_DNS_TIMEOUT_S = 2.0
_DNS_FRESH_S = 0.5
_EXPECTED = "static:SERVICE=HOST:PORT,...;..., dns:SERVICE=NAME:PORT;... or file:/PATH"


class StaticDirectory:
    """Addresses that were given once."""

    def __init__(self, services: Mapping[str, tuple[str, ...]]) -> None:
        self._services = {name: tuple(sorted(found)) for name, found in services.items()}

    async def addresses(self, service: str) -> tuple[str, ...]:
        return self._services.get(service, ())


class DnsDirectory:
    """All addresses behind one name: compose with `--scale`, Kubernetes headless services.

    What was found is good for `_DNS_FRESH_S`: each placement asks for the routers, each fetch for
    the stores, and a question to DNS is a thread and a round trip.
    """

    def __init__(self, names: Mapping[str, tuple[str, ...]]) -> None:
        self._names = dict(names)
        self._found: dict[str, tuple[float, tuple[str, ...]]] = {}

    async def addresses(self, service: str) -> tuple[str, ...]:
        now_s = asyncio.get_running_loop().time()
        until_s, addresses = self._found.get(service, (0.0, ()))
        if now_s < until_s:
            return addresses
        found: set[str] = set()
        for name in self._names.get(service, ()):
            found.update(await _resolve(name))
        addresses = tuple(sorted(found))
        if addresses:
            self._found[service] = (now_s + _DNS_FRESH_S, addresses)
        return addresses


async def _resolve(name: str) -> list[str]:
    host, _, port = name.rpartition(":")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_DNS_TIMEOUT_S):
            infos = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, TimeoutError):
        return []
    return [_join(info[4]) for info in infos]


def _join(sockaddr: tuple[object, ...]) -> str:
    host, port = sockaddr[0], sockaddr[1]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


class FileDirectory:
    """A JSON object of lists, `{"prefill": ["127.0.0.1:7001"]}`; re-read when it changes.

    Writers replace the file by a rename. A file that is absent, or not readable as such, leaves
    what was known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._services: dict[str, tuple[str, ...]] = {}

    async def addresses(self, service: str) -> tuple[str, ...]:
        self._refresh()
        return self._services.get(service, ())

    def _refresh(self) -> None:
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if stamp == self._stamp:
                return
            content = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return
        if isinstance(content, dict):
            self._services = {
                str(name): tuple(sorted(str(address) for address in found))
                for name, found in content.items()
                if isinstance(found, list)
            }
            self._stamp = stamp


def parse_directory(spec: str) -> Directory:
    """The directory that a setting names. Raises ValueError that says what was expected."""
    kind, colon, rest = spec.partition(":")
    if colon and kind == "file" and rest:
        return FileDirectory(Path(rest))
    if colon and kind == "static":
        return StaticDirectory(_parse_services(rest))
    if colon and kind == "dns":
        return DnsDirectory(_parse_services(rest))
    raise ValueError(f"expected {_EXPECTED}")


DirectorySetting = Annotated[Directory, Parsed(_EXPECTED, parse_directory)]
"""The type of the setting that names a directory."""


def _parse_services(text: str) -> dict[str, tuple[str, ...]]:
    services: dict[str, tuple[str, ...]] = {}
    for part in filter(None, text.split(";")):
        name, equals, listed = part.partition("=")
        addresses = tuple(filter(None, listed.split(",")))
        if not name or not equals:
            raise ValueError(f"{part!r}: expected SERVICE=HOST:PORT,HOST:PORT")
        if name in services:
            raise ValueError(f"{name} is named twice: expected SERVICE=HOST:PORT,HOST:PORT")
        for address in addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"{address!r} of {name}: expected HOST:PORT, port 1 to 65535")
        services[name] = addresses
    return services
