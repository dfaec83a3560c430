"""The figures: a table for people, bench/results.json for programs."""

import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Figure:
    """What was measured, once a round. `bar` is the most it may be, or the least if `at_least`."""

    what: str
    values: Sequence[float]
    unit: str = "×"
    bar: float | None = None
    at_least: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        if self.bar is None:
            return True
        return self.median >= self.bar if self.at_least else self.median <= self.bar

    def row(self) -> str:
        bar = "" if self.bar is None else f"{'≥' if self.at_least else '≤'} {self.bar:g}"
        between = f"{_short(min(self.values))}–{_short(max(self.values))}"
        missed = "" if self.holds else " **missed**"
        between = between if len(self.values) > 1 else ""
        return f"| {self.what} | {_short(self.median)} {self.unit} | {between} | {bar}{missed} |"


def report(figures: Sequence[Figure], path: Path) -> None:
    """Print a table in Markdown, and write all rounds of all figures to `path`."""
    lines = ["| what | median | all rounds | bar |", "| --- | --- | --- | --- |"]
    sys.stdout.write("\n".join([*lines, *(figure.row() for figure in figures)]) + "\n")
    results = [asdict(figure) | {"median": figure.median} for figure in figures]
    path.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.2f}"
