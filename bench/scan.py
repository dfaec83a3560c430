"""How fast `keys scan` reads plain files on one core, its start included."""

import os
import time
from pathlib import Path

from bench.report import Figure
from bench.servers import install

FILES, SIZE, ROUNDS = 64, 16_000_000, 5
LINE = 60
BASE62 = (b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" * 5)[:256]
BAR = 200


def measure(folder: Path, _postgres: str) -> list[Figure]:
    installed, files = install(f"sqlite:///{folder}/scan.db"), folder / "scan"
    files.mkdir()
    for number in range(FILES):
        text = os.urandom(SIZE).translate(BASE62)
        lines = (text[at : at + LINE] for at in range(0, SIZE, LINE))
        (files / f"{number}.txt").write_bytes(b"\n".join(lines))
    size = sum(file.stat().st_size for file in files.iterdir()) / 1_000_000
    cores, speeds = os.sched_getaffinity(0), []
    os.sched_setaffinity(0, {min(cores)})  # and whatever is started from now on
    try:
        for _ in range(ROUNDS):
            start = time.perf_counter()
            installed.flask("keys", "scan", str(files))
            speeds.append(size / (time.perf_counter() - start))
    finally:
        os.sched_setaffinity(0, cores)
    return [Figure("`keys scan` of plain files on one core", speeds, "MB/s", BAR, at_least=True)]
