"""What the Dockerfiles run: a venv of what others wrote, and our own packages for a layer above.

In two steps, so that a change of our code leaves the large layer alone. What is needed is read
from the `pyproject.toml` files that a Dockerfile has copied, its versions from constraints.txt;
torch is the CPU build, as in `setup_env`, or the build of the image fails.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

from setup_env import ROOT, SetupError, check_build, in_find_links, packages_in, run_installer

PYTHON = Path(sys.executable)
"""Of the builder, with pip, uv and hatchling; the venv has none of them."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("theirs", "ours"))
    parser.add_argument("venv", type=Path)
    parser.add_argument("--torch-index", default="", help="where CPU builds are, if not at hand")
    args = parser.parse_args()
    python = args.venv / "bin" / "python"
    try:
        if args.step == "theirs":
            install_theirs(args.venv, python, args.torch_index)
        else:
            install_ours(python, args.venv.with_name("ours"))
    except SetupError as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


def install_theirs(venv: Path, python: Path, torch_index: str) -> None:
    """A venv without pip, with what the packages here declare."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", venv], check=True)
    wanted = theirs(ROOT)
    has_torch = any(requirement.startswith("torch") for requirement in wanted)
    options = ["-c", str(ROOT / "constraints.txt"), "--compile-bytecode"]
    if has_torch and not in_find_links(PYTHON, torch_pin()):
        options += ["--extra-index-url", torch_index]
    run_installer(PYTHON, python, [*options, *wanted])
    if has_torch:
        check_build(python, "cpu")


def theirs(root: Path) -> list[str]:
    """Every requirement that is none of our packages."""
    wanted: set[str] = set()
    for file in [*packages_in(root / "libs"), *packages_in(root / "services")]:
        wanted |= set(tomllib.loads(file.read_text())["project"]["dependencies"])
    return sorted(name for name in wanted if not name.startswith("banyan-"))


def torch_pin() -> str:
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in pins if line.startswith("torch=="))


def install_ours(python: Path, prefix: Path) -> None:
    """Our packages as the venv would have them, but under `prefix`, for a layer of their own."""
    folders = [file.parent for top in ("libs", "services") for file in packages_in(ROOT / top)]
    with tempfile.TemporaryDirectory() as wheels:
        for folder in folders:  # three times as fast as `pip wheel`
            command = [str(PYTHON), "-m", "hatchling", "build", "-t", "wheel", "-d", wheels]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        options = ["--no-deps", "--compile-bytecode", "--prefix", str(prefix)]
        run_installer(PYTHON, python, [*options, *map(str, sorted(Path(wheels).iterdir()))])


if __name__ == "__main__":
    sys.exit(main())
