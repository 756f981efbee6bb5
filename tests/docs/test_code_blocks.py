"""Every Python block of README.md and docs/*.md runs, one namespace per page, top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SYBIL = Sybil(parsers=[PythonCodeBlockParser()])


def blocks(page: Path) -> int:
    return page.read_text(encoding="utf-8").count("```python")


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    torch.manual_seed(0)
    examples = list(SYBIL.parse(page).examples())
    assert len(examples) >= blocks(page)  # none was overlooked by the parser
    for example in examples:
        example.evaluate()


def test_the_pages_that_teach_by_example_have_examples() -> None:
    teaching = {
        "README.md",
        "quickstart.md",
        "swap-the-noise.md",
        "what-gamma-changes.md",
        "data-to-model.md",
    }
    assert teaching <= {p.name for p in PAGES if blocks(p)}
