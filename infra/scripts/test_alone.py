"""Proves that each service installs and imports by itself, with only what it declares.

Every service gets a fresh environment with its wheel, the wheels of our libraries, and whatever
those name; then every module of ours in it is imported. Torch must not be there: what needs it
asks for it by the `torch` extra.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from setup_env import ROOT, SetupError, packages_in, run_installer

IMPORT_ALL = """
import importlib, importlib.util, pkgutil, sys
names = [m.name for m in pkgutil.iter_modules() if m.name.startswith("banyan_")]
for name in names:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
importlib.import_module(sys.argv[1] + ".main")
assert importlib.util.find_spec("torch") is None, "torch got in"
print(f"{len(sys.modules)} modules of {', '.join(names)}")
"""


def main() -> int:
    tools = Path(sys.executable)
    with tempfile.TemporaryDirectory(prefix="banyan-alone-") as folder:
        wheels = Path(folder) / "wheels"
        build_wheels(tools, wheels)
        failed = [
            path.parent.name
            for path in packages_in(ROOT / "services")
            if not stands_alone(tools, wheels, Path(folder), path.parent.name)
        ]
    if failed:
        print(f"not alone: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def build_wheels(tools: Path, wheels: Path) -> None:
    """A wheel of each library and service."""
    sources = [str(f.parent) for top in ("libs", "services") for f in packages_in(ROOT / top)]
    options = ["-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels)]
    subprocess.run([str(tools), "-m", "pip", "wheel", *options, *sources], check=True)


def stands_alone(tools: Path, wheels: Path, folder: Path, service: str) -> bool:
    started = time.monotonic()
    home = folder / service
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    arguments = ["--find-links", str(wheels), "-c", str(ROOT / "constraints.txt")]
    try:
        run_installer(tools, python, [*arguments, f"banyan-{service}"])
    except SetupError as error:
        print(f"{service}: {error}", file=sys.stderr)
        return False
    command = [str(python), "-I", "-c", IMPORT_ALL, f"banyan_{service}"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (asked.stdout or asked.stderr).strip().splitlines()[-1]
    print(f"{service:11} {time.monotonic() - started:4.1f} s  {said}", flush=True)
    return asked.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
