"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says more about the machine's other work than about the code;
# pytest's timeout ends what hangs.
settings.register_profile("banyan", deadline=None)
settings.load_profile("banyan")
