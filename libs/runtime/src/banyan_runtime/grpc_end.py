"""What ended a call that we were still writing to.

A server may answer before it has read everything. When a write then fails, grpc's asyncio puts
`INTERNAL: Internal error from Core` in the place of the status that has come (its issue 36066):
of uploads refused early 49 in 800 on a
busy machine (2026-11-29), and none since. The status is noted when it comes.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import grpc


class CallEnd:
    """Of one call, told of before anything is written to it."""

    def __init__(self, call: Any) -> None:
        self._code: grpc.StatusCode | None = None
        self._details = ""
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        if self._code is None:
            self._code, self._details = _known(call.code()), _known(call.details()) or ""

    def status(self, error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str]:
        """Code and details of what the caller was told in `error`."""
        if error.code() is grpc.StatusCode.INTERNAL and self._code is not None:
            return self._code, self._details
        return error.code(), error.details() or ""


def _known(asked: Coroutine[Any, Any, Any]) -> Any:
    """The result of what waits for nothing: the call is done, and may soon say otherwise."""
    try:
        asked.send(None)
    except StopIteration as found:
        return found.value
    asked.close()
    raise RuntimeError("a call that is done does not know its status")
