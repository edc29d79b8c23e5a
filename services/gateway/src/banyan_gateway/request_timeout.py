"""How long a client wants to wait for its answer: a header, since the body is OpenAI's.

Milliseconds from the request's arrival, as Envoy's request timeout header counts them. Clients that
only hang up after their own timeout have had the work done for nothing, and others shed for it.
"""

from __future__ import annotations

from typing import Final

from banyan_core.types import NS_PER_MS
from banyan_gateway.errors import invalid

HEADER: Final = "x-request-timeout-ms"
TIMEOUT_MS_MAX: Final = 24 * 60 * 60 * 1000


def timeout_ns(given: str | None) -> int | None:
    """None without the header. Raises ApiError 400."""
    if given is None:
        return None
    is_number = given.isascii() and given.isdecimal() and len(given) <= len(str(TIMEOUT_MS_MAX))
    if not is_number or not 1 <= int(given) <= TIMEOUT_MS_MAX:
        raise invalid(HEADER, f"expected whole milliseconds from 1 to {TIMEOUT_MS_MAX}")
    return int(given) * NS_PER_MS
