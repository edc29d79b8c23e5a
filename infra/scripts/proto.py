"""Generates what is committed of the wire, and checks that it is what `proto/` says.

`write` makes the stubs in `libs/proto/src` and the descriptor set `proto/banyan.v1.binpb`, which
is the promise to peers of the last version: neither `write` nor `check` lets a change through
that breaks it (see `descriptors`). What must break goes into a new package, `banyan.v2`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from descriptors import breaks
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc  # type: ignore[import-untyped]  # it ships no types

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "proto"
STUBS = ROOT / "libs" / "proto" / "src"
PROMISE = SOURCES / "banyan.v1.binpb"
RELEASED = SOURCES / "released"
GENERATED = ("*_pb2.py", "*_pb2.pyi")


class ProtoError(Exception):
    """Why the wire is not in order."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("write", "check"))
    verb = parser.parse_args().verb
    try:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder)
            generate(made)
            refuse_breaks((made / PROMISE.name).read_bytes())
            if verb == "write":
                write(made)
            else:
                check(made)
    except ProtoError as error:
        print(f"proto: {error}", file=sys.stderr)
        return 1
    return 0


def generate(target: Path) -> None:
    """Stubs and descriptor set of `proto/`, into `target`."""
    sources = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.proto"))
    bin_folder = Path(sys.executable).parent
    code = protoc.main(
        [
            "protoc",
            f"-I{SOURCES}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--descriptor_set_out={target / PROMISE.name}",
            "--include_imports",
            *sources,
        ]
    )
    if code != 0:
        raise ProtoError("protoc failed, see above.")


def refuse_breaks(new: bytes) -> None:
    """Compare with every released version, the work tree's promise, and the last two commits'."""
    promises = [path.read_bytes() for path in sorted(RELEASED.glob("*.binpb"))]
    promises += [PROMISE.read_bytes()] if PROMISE.exists() else []
    name = PROMISE.relative_to(ROOT).as_posix()
    for commit in ("HEAD", "HEAD^"):
        shown = subprocess.run(
            ["git", "show", f"{commit}:{name}"], cwd=ROOT, capture_output=True, check=False
        )
        if shown.returncode == 0:
            promises.append(shown.stdout)
    for promise in promises:
        found = breaks(FileDescriptorSet.FromString(promise), FileDescriptorSet.FromString(new))
        if found:
            raise ProtoError("the wire would break its peers:\n  " + "\n  ".join(found))


def write(made: Path) -> None:
    for path in generated_in(STUBS):
        (STUBS / path).unlink()
    for path in generated_in(made):
        (STUBS / path).parent.mkdir(parents=True, exist_ok=True)
        (STUBS / path).write_bytes((made / path).read_bytes())
    PROMISE.write_bytes((made / PROMISE.name).read_bytes())


def check(made: Path) -> None:
    """Raises ProtoError naming the files that `make proto` would change."""
    paths = sorted({*generated_in(made), *generated_in(STUBS)})
    stale = [str(path) for path in paths if not _same(made / path, STUBS / path)]
    if not _same(made / PROMISE.name, PROMISE):
        stale.append(PROMISE.name)
    if stale:
        raise ProtoError(f"{', '.join(stale)}: not what proto/ gives, run `make proto`.")


def generated_in(folder: Path) -> list[Path]:
    """Relative paths of the generated files."""
    return sorted(p.relative_to(folder) for glob in GENERATED for p in folder.rglob(glob))


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


if __name__ == "__main__":
    sys.exit(main())
