"""Routes of functions that take the request, and nothing else."""

from __future__ import annotations

from starlette.routing import Match, Route
from starlette.types import Scope


class PlainRoute(Route):
    """Starlette's: FastAPI's own looks for a function's parameters in each request, which a first
    token would wait for. Like FastAPI's it says in the scope which route was taken."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        found["route"] = self
        return match, found
