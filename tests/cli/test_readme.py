"""The pages' links lead somewhere, and the functions that the root one names are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)\)")
ANCHOR = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
READMES = sorted(
    path
    for pattern in ("*.md", "libs/*/*.md", "services/*/*.md", "infra/*.md", "load-tests/*.md")
    for path in ROOT.glob(pattern)
)


def links(path: Path) -> list[tuple[str, str]]:
    found = LINK.findall(path.read_text())
    return [(text, target) for text, target in found if "://" not in target]


def names_in(file: Path) -> set[str]:
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
            inner = (n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
            names.update(f"{node.name}.{function.name}" for function in inner)
    return names


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    absent = [target for _, target in links(readme) if not (readme.parent / target).exists()]
    assert absent == []


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = HEADING.findall(page.read_text())
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_anchors_are_headings(readme: Path) -> None:
    found = [each for each in ANCHOR.findall(readme.read_text()) if "://" not in each[0]]
    pages = [(readme.parent / target if target else readme, name) for target, name in found]
    assert [(page.name, name) for page, name in pages if name not in anchors(page)] == []


def test_functions_of_a_requests_life_are_where_the_readme_says() -> None:
    named = [(text.strip("`"), target) for text, target in links(ROOT / "README.md") if "`" in text]
    assert len(named) >= 8
    assert [name for name, target in named if name not in names_in(ROOT / target)] == []
