"""What must stay byte for byte, against what was written down in `tests/golden`.

When a change of it is meant, `python -m tests.golden [FILE…]` writes it anew: read the difference
before it is committed.
"""

from difflib import unified_diff
from pathlib import Path

import pytest

from tests.golden.records import RECORDS

FOLDER = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", RECORDS)
def test_stays_as_it_was_written_down(name: str) -> None:
    path = FOLDER / name
    assert path.is_file(), f"{name} is missing: write it with `python -m tests.golden {name}`"
    expected, found = path.read_bytes().decode(), RECORDS[name]()
    if found != expected:
        lines = unified_diff(expected.split("\n"), found.split("\n"), name, "now", lineterm="", n=4)
        pytest.fail("\n".join(lines), pytrace=False)


def test_nothing_is_written_down_that_nobody_compares() -> None:
    assert {path.name for path in FOLDER.iterdir() if path.suffix in (".json", ".txt")} == {
        *RECORDS
    }
