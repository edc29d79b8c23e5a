"""Text around calls: blanks next to a call are layout, all other text is the answer's."""

from __future__ import annotations

from banyan_text.tools.news import Content, ToolNews


class ContentText:
    """Holds blanks back until it is known whether a call follows them."""

    def __init__(self) -> None:
        self._blanks = ""
        self._after_call = False

    def push(self, text: str) -> list[ToolNews]:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        text = self._blanks + text
        shown = text.rstrip()
        self._blanks = text[len(shown) :]
        return [Content(shown)] if shown else []

    def call(self) -> None:
        """A call stands here."""
        self._blanks = ""
        self._after_call = True

    def finish(self) -> list[ToolNews]:
        blanks, self._blanks = self._blanks, ""
        return [Content(blanks)] if blanks else []
