"""An environment per client, as its users have it: made by pip from the pins beside this file.

Environments are kept in `.clients/` between runs, until their pins change. No package index in
reach is a reason to skip; everything else that goes wrong fails.
"""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".clients"
INSTALL_TIMEOUT_S = 900
_UNREACHABLE = (
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
    "Max retries exceeded",
    "ConnectTimeoutError",
    "ProxyError",
)


def environment(name: str) -> Path:
    """The `bin` folder of the environment for `<name>.txt`; installs what is not there yet."""
    pins = (HERE / f"{name}.txt").read_text()
    folder = FOLDER / name
    done = folder / "pins.txt"
    if not done.exists() or done.read_text() != pins:
        done.unlink(missing_ok=True)
        venv.create(folder, with_pip=True, clear=folder.exists())
        _install(folder / "bin" / "python", name)
        done.write_text(pins)
    return folder / "bin"


def _install(python: Path, name: str) -> None:
    command = [str(python), "-m", "pip", "install", "-q", "-r", str(HERE / f"{name}.txt")]
    installed = subprocess.run(
        command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, check=False
    )
    if installed.returncode == 0:
        return
    if any(words in installed.stderr for words in _UNREACHABLE):
        pytest.skip(f"no package index is in reach, so {name} cannot be installed")
    pytest.fail(f"installing {name} failed:\n{installed.stderr}", pytrace=False)
