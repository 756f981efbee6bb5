"""What the pages refer to exists: linked files and headings, commands, public names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import spatialdiff as sd
from spatialdiff.cli import COMMANDS
from spatialdiff.covariance.factory import METHODS
from spatialdiff.sampling import SOLVERS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MyST give the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(file), (
                f"{page.name} links to {target}; {file.name} has {sorted(anchors(file))}"
            )


def test_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
        named = re.findall(r"`make ([a-z]+)", text) + re.findall(
            r"^make ([a-z]+)", fenced, flags=re.MULTILINE
        )
        assert set(named) <= targets, page.name


def test_every_public_name_is_in_the_api_reference() -> None:
    api = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("api*.md"))
    missing = [
        n for n in sd.__all__ if n != "__version__" and not re.search(rf"spatialdiff\.(\w+\.)*{n}\b", api)
    ]
    assert missing == []


def first_column(page: str, header: str) -> set[str]:
    """The quoted names in the first column of the table whose header row starts with ``header``."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {header} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line.split("|")[1])
    return set(re.findall(r'`"(\w+)"`', " ".join(rows)))


def test_tables_of_names_are_complete() -> None:
    assert first_column("data-to-model.md", "`solver`") == set(SOLVERS)
    assert first_column("structures.md", "`method`") == set(METHODS) - {"auto"}


def test_commands_that_are_named_exist() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
        named = re.findall(r"`spatialdiff ([a-z]+)", text)
        named += re.findall(r"^spatialdiff ([a-z]+)", fenced, flags=re.MULTILINE)
        assert set(named) <= set(COMMANDS), page.name
    listed = re.findall(
        r"^spatialdiff ([a-z]+) ", (ROOT / "docs" / "command-line.md").read_text(), flags=re.MULTILINE
    )
    assert set(listed) == set(COMMANDS)
