"""Taking an address to listen on: one way, and one sentence when it cannot be had."""

from __future__ import annotations

import errno
import socket

from banyan_runtime.settings import is_address


def listen(address: str, backlog: int = 128) -> socket.socket:
    """A listening socket at `host:port`; port 0 is any.

    Raises OSError whose `filename` is the address, so that the setting can be found.
    """
    if not is_address(address):
        raise cannot_listen(address, ValueError("it is not HOST:PORT"))
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = family is socket.AF_INET6 and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, int(port)), family=family, backlog=backlog, dualstack_ipv6=both
        )
    except OSError as error:
        raise cannot_listen(address, error) from None


def cannot_listen(address: str, why: Exception) -> OSError:
    """The error of an address that is taken, not this machine's, or none at all."""
    number = why.errno if isinstance(why, OSError) and why.errno else errno.EADDRNOTAVAIL
    reason = why.strerror if isinstance(why, OSError) and why.strerror else str(why)
    # Python adds the address to some of these words; it is told already.
    reason = reason.partition(" (while attempting")[0]
    return OSError(
        number, f"cannot listen ({reason}): expected a free address of this machine", address
    )
