"""Resolves every range anew into constraints.txt: the one place with exact versions.

Installs all packages and the tools of the root `pyproject.toml` into a fresh environment and
writes down what came, without our own packages, addresses, hashes, or torch's `+cpu`: which build
of torch is installed is the set-up's business.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from setup_env import ROOT, in_find_links, packages_in, run_installer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-index", required=True, help="the index that has the CPU builds")
    torch_index = parser.parse_args().torch_index
    tools = Path(sys.executable)
    folders = [f.parent for top in ("libs", "services") for f in packages_in(ROOT / top)]
    ours = [word for folder in folders for word in ("-e", str(folder))]
    options = [] if in_find_links(tools, "torch") else ["--extra-index-url", torch_index]
    with tempfile.TemporaryDirectory(prefix="banyan-pins-") as folder:
        venv.create(folder, with_pip=False)
        python = Path(folder) / "bin" / "python"
        run_installer(tools, python, [*options, *ours, *dev_tools()])
        command = [str(tools), "-m", "pip", "--python", str(python), "freeze", "--exclude-editable"]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (ROOT / "constraints.txt").write_text(pins(listed))
    return 0


def dev_tools() -> list[str]:
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return list(tools["dependency-groups"]["dev"])


def pins(freeze: str) -> str:
    """A freeze's lines `name==version`, without local versions such as `+cpu`."""
    lines = [line.partition("+")[0] for line in freeze.splitlines() if "==" in line]
    return "".join(f"{line}\n" for line in lines if not line.startswith(("#", "banyan")))


if __name__ == "__main__":
    sys.exit(main())
