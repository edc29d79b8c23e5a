"""The decode worker: everything is in `banyan_worker`, only the preferred role is its own."""

from __future__ import annotations

from banyan_core.types import Role
from banyan_worker.main import run_worker


def main() -> None:
    run_worker(Role.DECODE)
