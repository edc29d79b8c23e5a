"""Each package declares exactly what it imports: nothing in silence, nothing for show.

In one environment with everything in it an undeclared import works, until somebody installs the
service alone. So the imports of each package's files are held against its `pyproject.toml`, those
inside of functions too. What a package needs without importing it is named here, with the reason.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOT_IMPORTED = {
    ("banyan-runtime", "hiredis"),  # redis-py takes it when it is there
    ("banyan-gateway", "uvloop"),  # uvicorn's loop, by name
    ("banyan-gateway", "httptools"),  # uvicorn's parser, by name
}

NAMESPACES = {
    "google.protobuf": "protobuf",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp-proto-grpc",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry": "opentelemetry-api",
}
"""Modules of names that several distributions share, the longest first."""


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    declared: frozenset[str]
    imported: dict[str, str]
    """Top-level module to one place that imports it."""


def main() -> int:
    packages = [read_package(path) for path in pyprojects(ROOT)]
    complaints = [line for package in packages for line in complain(package)]
    print("\n".join(complaints) or f"imports of {len(packages)} packages are as declared")
    return 1 if complaints else 0


def pyprojects(root: Path) -> list[Path]:
    return sorted(
        path for top in ("libs", "services") for path in (root / top).glob("*/pyproject.toml")
    )


def read_package(pyproject: Path) -> Package:
    project = tomllib.loads(pyproject.read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in project.get("optional-dependencies", {}).values():
        wanted += extra
    imported: dict[str, str] = {}
    for file in sorted((pyproject.parent / "src").rglob("*.py")):
        for module in imports_of(ast.parse(file.read_text())):
            imported.setdefault(module, str(file.relative_to(pyproject.parents[2])))
    return Package(project["name"], frozenset(map(requirement_name, wanted)), imported)


def requirement_name(requirement: str) -> str:
    """`Prometheus_Client[x]>=1` is `prometheus-client`."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement.strip(), maxsplit=1)[0]
    return normal(name)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports_of(tree: ast.AST) -> Iterator[str]:
    """Top-level names; whole where a name is shared, as nobody owns `google`."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        for name in names:
            shared = (each for each in NAMESPACES if name == each or name.startswith(f"{each}."))
            yield next(shared, name.split(".")[0])


def distribution(module: str) -> str:
    """The name under which a module is installed."""
    if module in NAMESPACES:
        return NAMESPACES[module]
    if module == "banyan":
        return "banyan-proto"
    if module.startswith("banyan_"):
        return module.replace("_", "-")
    found = packages_distributions().get(module)
    return normal(found[0]) if found else module


def complain(package: Package) -> Iterator[str]:
    used = {}
    for module, place in package.imported.items():
        if module not in sys.stdlib_module_names:
            used[distribution(module)] = place
    used.pop(package.name, None)
    for name in sorted(used.keys() - package.declared):
        yield f"{package.name}: {used[name]} imports {name}, which is not declared"
    for name in sorted(package.declared - used.keys()):
        if (package.name, name) not in NOT_IMPORTED:
            yield f"{package.name}: {name} is declared and never imported"


if __name__ == "__main__":
    sys.exit(main())
