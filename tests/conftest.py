"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# How long an example takes says more about the machine's other work than about the code;
# pytest's timeout ends what hangs. CI repeats the same examples, so that a change is judged by
# what it changed; on a developer's machine each run looks elsewhere.
settings.register_profile("banyan", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("banyan")
