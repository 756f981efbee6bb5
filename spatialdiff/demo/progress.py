"""Progress in two lines: the stage of the whole, and the steps of the stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stages:
    """Named stages under one bar; `seconds` says how long each took.

    Args:
        total: number of stages.
        title: of the bar.
        show: whether to show anything.
    """

    def __init__(self, total: int, title: str, show: bool = True) -> None:
        from tqdm import tqdm

        self.seconds: dict[str, float] = {}
        self.show = show
        self._bar = tqdm(
            total=total,
            desc=title,
            file=sys.stderr,
            disable=not show,
            dynamic_ncols=True,
            bar_format="{desc:<52} |{bar:20}| {n_fmt}/{total_fmt} [{elapsed}]",
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """One stage."""
        self._bar.set_description_str(name, refresh=True)
        begun = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begun
        self._bar.update()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bar.write(text, file=sys.stdout)

    def steps(self, total: int, name: str) -> Any:
        """A bar for the steps inside a stage."""
        from tqdm import tqdm

        return tqdm(
            total=total, desc=name, leave=False, file=sys.stderr, disable=not self.show, dynamic_ncols=True
        )

    def close(self) -> None:
        """Close the bar."""
        self._bar.set_description_str("done", refresh=True)
        self._bar.close()
