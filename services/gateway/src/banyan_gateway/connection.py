"""Work that lives only as long as the client's connection."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.types import Receive


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> None:
    """Do `work` in this very task; when the client goes away it is cancelled, and its end awaited.

    The request's body must have been read: whatever comes now is the disconnect.
    """
    here = asyncio.current_task()
    assert here is not None
    is_done = is_cancelled = False

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal is_cancelled
        if not is_done:  # else this comes in the turn in which the work has ended
            is_cancelled = here.cancel()

    watching = asyncio.create_task(_disconnect(receive))
    watching.add_done_callback(leave)
    try:
        await work
    except asyncio.CancelledError:
        if not is_cancelled or here.uncancel():
            raise  # somebody else wants this task to end
    finally:
        is_done = True
        watching.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
