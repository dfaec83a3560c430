"""Write the expectations anew: all of them, or those that are named."""

import logging
import sys
from pathlib import Path

from tests.golden.records import RECORDS


def main(names: list[str]) -> None:
    logging.disable()  # what is refused on purpose
    for name in names or RECORDS:
        (Path(__file__).parent / name).write_bytes(RECORDS[name]().encode())
        print(name)


if __name__ == "__main__":
    main(sys.argv[1:])
