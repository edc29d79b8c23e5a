"""What every Dockerfile here must and must not do; no Docker is needed to see it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from image_venv import theirs

import banyan_engine
from banyan_engine.kernels.build import READY_MADE

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted(ROOT.glob("services/*/Dockerfile"))
KERNELS = "libs/engine/src/banyan_engine/kernels"
"""Copied by itself too, so that it is compiled again only when it changes."""
SHARED_FILES = {"constraints.txt", "infra/scripts/setup_env.py", "infra/scripts/image_venv.py"}


def service_of(dockerfile: Path) -> str:
    return dockerfile.parent.name


each = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=service_of)


def instructions(dockerfile: Path) -> list[str]:
    text = dockerfile.read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def copied(dockerfile: Path) -> set[str]:
    """What comes from the build context."""
    words = [line.split() for line in instructions(dockerfile) if line.startswith("COPY ")]
    from_context = [line[1:-1] for line in words if not line[1].startswith("--from=")]
    return {source for sources in from_context for source in sources}


def ours_of(folder: Path) -> Iterator[Path]:
    """The folder, and those of our packages that it needs; a worker's `torch` extra too."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    wanted += project.get("optional-dependencies", {}).get("torch", [])
    yield folder
    for name in wanted:
        if found := re.match(r"banyan-([a-z]+)", name):
            yield from ours_of(ROOT / "libs" / found[1])


def test_there_is_one_for_each_service() -> None:
    services = sorted(file.parent.name for file in ROOT.glob("services/*/pyproject.toml"))
    assert [service_of(file) for file in DOCKERFILES] == services


@each
def test_it_copies_what_the_service_needs_and_nothing_else(dockerfile: Path) -> None:
    needed = {str(folder.relative_to(ROOT)) for folder in ours_of(dockerfile.parent)}
    declarations = {f"{folder}/pyproject.toml" for folder in needed}
    found = copied(dockerfile) - SHARED_FILES - {KERNELS}
    assert found - declarations == needed
    missing = declarations - found
    # A service's own file may stay out of the first layers if the libraries' say as much.
    assert missing <= {f"services/{service_of(dockerfile)}/pyproject.toml"}
    if missing:
        own = tomllib.loads((dockerfile.parent / "pyproject.toml").read_text())["project"]
        outside = {name for name in own["dependencies"] if not name.startswith("banyan-")}
        assert outside <= requirements_of(found & declarations)


def requirements_of(declarations: set[str]) -> set[str]:
    projects = [tomllib.loads((ROOT / file).read_text())["project"] for file in declarations]
    return {name for project in projects for name in project["dependencies"]}


@each
def test_third_party_packages_come_before_our_code(dockerfile: Path) -> None:
    lines = instructions(dockerfile)
    install = next(i for i, line in enumerate(lines) if "image_venv.py theirs" in line)
    before = [
        line for line in lines[:install] if line.startswith("COPY libs") or "services" in line
    ]
    assert before and all("pyproject.toml" in line for line in before)


@each
def test_it_runs_as_somebody_without_rights(dockerfile: Path) -> None:
    last = instructions(dockerfile)
    last = last[max(i for i, line in enumerate(last) if line.startswith("FROM ")) :]
    service = service_of(dockerfile)
    assert "USER 10001:10001" in last
    assert "STOPSIGNAL SIGTERM" in last
    assert f'ENTRYPOINT ["banyan-{service}"]' in last
    assert any(line.endswith(f'"banyan_runtime.probe", "{service}"]') for line in last)
    (base,) = {line.split()[1] for line in instructions(dockerfile) if line.startswith("FROM p")}
    assert base == "python:3.11-slim-bookworm"


@each
def test_torch_is_in_the_workers_only_and_never_the_cuda_build(dockerfile: Path) -> None:
    is_worker = service_of(dockerfile) in ("prefill", "decode")
    assert ("libs/engine" in copied(dockerfile)) == is_worker
    assert (KERNELS in copied(dockerfile)) == is_worker
    assert ("--torch-index $TORCH_INDEX" in dockerfile.read_text()) == is_worker


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_the_helper_lies_where_it_is_looked_for_and_no_compiler_comes_along(role: str) -> None:
    lines = instructions(ROOT / "services" / role / "Dockerfile")
    stages = [i for i, line in enumerate(lines) if line.startswith("FROM ")]
    at = READY_MADE.relative_to(Path(banyan_engine.__file__).parents[1])
    assert f"COPY --from=helper /built /venv/lib/python3.11/site-packages/{at}" in lines
    assert [line for line in lines[stages[-1] :] if "apt-get" in line or "g++" in line] == []


def test_the_two_workers_share_every_layer_but_their_own() -> None:
    texts = {
        role: (ROOT / "services" / role / "Dockerfile").read_text().split("COPY services/")[0]
        for role in ("prefill", "decode")
    }
    first = {role: text.split("\n", 1)[1] for role, text in texts.items()}
    assert first["prefill"] == first["decode"]


def test_what_must_be_installed_is_read_from_the_declarations(tmp_path: Path) -> None:
    for name, dependencies in (("core", '"banyan-proto", "b>=1"'), ("text", '"a", "b>=1"')):
        folder = tmp_path / "libs" / name
        folder.mkdir(parents=True)
        (folder / "pyproject.toml").write_text(f"[project]\ndependencies = [{dependencies}]\n")
    assert theirs(tmp_path) == ["a", "b>=1"]


def test_the_context_is_only_what_is_copied() -> None:
    allowed = {
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert allowed == SHARED_FILES | {"libs", "services"}


def test_compose_names_exact_images_and_gives_no_rights() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, service in compose.items():
        image, _, tag = service["image"].partition(":")
        assert image and tag and tag != "latest", name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
        assert "privileged" not in service and "cap_add" not in service, name
        if "build" in service:
            assert service["read_only"] and service["init"], name
            assert service["build"]["dockerfile"] == f"services/{name}/Dockerfile"
