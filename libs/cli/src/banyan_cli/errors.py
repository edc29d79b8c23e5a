"""The one exception that a command shows to people: a sentence and an exit code."""

from __future__ import annotations


class CommandError(Exception):
    """Why a command cannot do its work, in one sentence that says what to do."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
