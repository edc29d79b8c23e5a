"""Makes the environment that every make target runs in; needs only a Python, not ours.

A plain install of torch from the package index brings the CUDA build: 5 GB that a laptop has no
use for. So the CPU build is taken from pip's own find-links where those have it, else from the
PyTorch CPU index, and a CUDA build that got in unasked fails the set-up in one sentence.

uv installs, about five times as fast as pip (17 s and 90 s on two busy cores, 2026-11-21); what it
cannot do, pip does. uv does not read pip's configuration, so that is handed to it.
Written for any Python 3: an old one gets a sentence and not a syntax error.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MIN_PYTHON = (3, 11)


class SetupError(Exception):
    """Why the environment cannot be made, in one sentence."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("venv", type=Path)
    parser.add_argument("--torch", default="cpu", help="cpu, or cuda for the index's plain build")
    parser.add_argument("--torch-index", required=True, help="the index that has the CPU builds")
    args = parser.parse_args()
    started = time.monotonic()
    try:
        set_up(args.venv.absolute(), args.torch, args.torch_index)
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 2
    print(f"set-up: ready in {time.monotonic() - started:.0f} s")
    return 0


def set_up(folder: Path, torch: str, torch_index: str) -> None:
    """Create the environment, install the pins and our packages, check torch's build."""
    if sys.version_info < MIN_PYTHON:
        found = ".".join(str(part) for part in sys.version_info[:2])
        raise SetupError(
            f"Banyan needs Python 3.11 or newer and this is {found}: "
            "name another with `make PYTHON=/path/to/python3`."
        )
    if torch not in ("cpu", "cuda"):
        raise SetupError(f"TORCH is {torch!r}, expected cpu or cuda.")
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"set-up: making {folder.name}", flush=True)
        venv.create(folder, with_pip=True)
    install_pins(python, torch, torch_index)
    install_ours(python)
    check_build(python, torch)


def install_pins(python: Path, torch: str, torch_index: str) -> None:
    """Everything in constraints.txt, which is complete, at exactly those versions."""
    pins = (ROOT / "constraints.txt").read_text()
    pin = next(line for line in pins.splitlines() if line.startswith("torch=="))
    options: list[str] = []
    source = "the package index"
    if torch == "cuda":
        # `===` compares strings, so the CPU build, whose version ends in `+cpu`, cannot match.
        pins = pins.replace(pin, pin.replace("==", "==="))
    elif in_find_links(python, pin):
        source = "pip's find-links"
    else:
        options, source = ["--extra-index-url", torch_index], torch_index
    wanted = python.parent.parent / f"pins-{torch}.txt"
    wanted.write_text(pins)
    if shutil.which("uv") is None:
        uv_pin = next(line for line in pins.splitlines() if line.startswith("uv=="))
        run_pip(python, python, [uv_pin])
    print(f"set-up: installing {len(pins.split())} packages, torch from {source}", flush=True)
    run_installer(python, python, [*options, "-r", str(wanted)])


def install_ours(python: Path) -> None:
    """Every package of this repository, editable; their needs are in the pins already."""
    folders = [file.parent for top in ("libs", "services") for file in packages_in(ROOT / top)]
    editable = [word for folder in folders for word in ("-e", str(folder))]
    run_installer(python, python, ["--no-deps", "--no-build-isolation", *editable])


def packages_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/pyproject.toml"))


def in_find_links(python: Path, pin: str) -> bool:
    """Whether the folders or pages that pip is told to look in have this very wheel."""
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "--no-deps",
        "-q",
        pin,
    ]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def run_installer(tools: Path, target: Path, arguments: list[str]) -> None:
    """Install into the Python `target` with the uv or else the pip of the Python `tools`.

    Raises SetupError when neither can.
    """
    uv = shutil.which("uv") or shutil.which("uv", path=str(tools.parent))
    if uv is not None:
        # Exact pins: which index has them is all the same, as it is for pip.
        command = [uv, "pip", "install", "-q", "--python", str(target)]
        command += ["--index-strategy", "unsafe-best-match"]
        settings = pip_settings(tools)
        for key in ("find-links", "extra-index-url", "index-url"):
            command += [f"--{key}={value}" for value in settings.get(key, [])]
        environment = dict(os.environ)
        if "cert" in settings:
            environment["SSL_CERT_FILE"] = settings["cert"][0]
        if subprocess.run([*command, *arguments], env=environment, check=False).returncode == 0:
            return
        print("set-up: uv did not manage, trying pip", flush=True)
    run_pip(tools, target, arguments)


def run_pip(tools: Path, target: Path, arguments: list[str]) -> None:
    command = [str(tools), "-m", "pip", "--python", str(target), "install", "-qq"]
    # Compiling every module takes longer than installing them, and most are never imported.
    if subprocess.run([*command, "--no-compile", *arguments], check=False).returncode != 0:
        raise SetupError("the installation failed, see above; then run make again.")


def pip_settings(python: Path) -> dict[str, list[str]]:
    """Pip's configuration: setting to values, where the environment overrides the files."""
    command = [str(python), "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    settings: dict[str, list[str]] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        origin, _, name = key.rpartition(".")
        if origin == ":env:" or name not in settings:
            settings[name] = shlex.split(value)[0].split()
    return settings


def check_build(python: Path, torch: str) -> None:
    """A CUDA build works, but nobody asked for its gigabytes."""
    command = [str(python), "-c", "import torch; print(torch.version.cuda or '')"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise SetupError(f"torch does not import: {asked.stderr.strip().splitlines()[-1]}")
    cuda = asked.stdout.strip()
    if cuda and torch == "cpu":
        raise SetupError(
            f"a CUDA {cuda} build of torch got in unasked: remove {python.parent.parent} and set "
            "TORCH_INDEX to an index with CPU builds, or say TORCH=cuda."
        )


if __name__ == "__main__":
    sys.exit(main())
