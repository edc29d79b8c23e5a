"""The demo model that ships with Banyan, so that a fresh checkout can answer.

A service that serves language models needs one to show that it works.  This
one is small enough to commit, and it is trained to *recall*: a wrong or
missing KV block turns into a wrong number in the answer, which a test can see.

Only the path lives here: reading it must not import torch.
"""

from pathlib import Path


def model_folder() -> Path:
    """Return the folder of the committed model, in Hugging Face layout."""
    return Path(__file__).parent / "banyan-demo"
