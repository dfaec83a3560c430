"""How much an audited call of a key costs, against two yardsticks on the same gunicorn.

Only ratios mean anything: the machine's own speed drifts, so the servers are asked in turn, round by
round, and each round gives its own ratio. Everybody has the same gunicorn: see `gunicorn_options`.
"""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.report import Figure
from bench.servers import (
    BENCH_PYTHON,
    BOOKINGS,
    CLIENTS,
    ROOT,
    create_database,
    gunicorn_options,
    install,
    run,
    serving,
    serving_product,
)

ROUNDS, SECONDS, CALLS = 7, 4, 1_000
BARE, DRF, SQLITE, POSTGRESQL = (
    "bare Flask view",
    "DRF + api-key, verifying only",
    "SQLite",
    "PostgreSQL",
)
# The least throughput against the bare view, and against DRF.
BARS: dict[str, tuple[float, float | None]] = {SQLITE: (0.42, 0.95), POSTGRESQL: (0.18, None)}
SLOWEST = 15  # ms
PROCESSOR = 1.0  # of DRF's, at most


@dataclass(frozen=True)
class Contestant:
    name: str
    port: int
    path: str
    header: str
    calls: Callable[[int], float]  # in one process: the processor time of each, in µs


@dataclass(frozen=True)
class Round:
    """One burst of requests: answers a second, the slowest 1 % in ms, a call's time in µs."""

    per_second: float
    slowest: float
    processor: float


def measure(folder: Path, postgres: str) -> list[Figure]:
    with contextlib.ExitStack() as stack:
        key = run(BENCH_PYTHON, "bench/drf.py", BENCH_FOLDER=str(folder))
        contestants = [
            stack.enter_context(yardstick(BARE, "bare:app", "", folder)),
            stack.enter_context(
                yardstick(DRF, "drf:application", f"Authorization: Api-Key {key}", folder)
            ),
            stack.enter_context(product(SQLITE, f"sqlite:///{folder}/call.db")),
            stack.enter_context(product(POSTGRESQL, create_database(postgres, "call"))),
        ]
        rounds: dict[str, list[Round]] = {each.name: [] for each in contestants}
        for number in range(-1, ROUNDS):  # the first warms everybody up and does not count
            for each in contestants:
                measured = burst(each)
                if number >= 0:
                    rounds[each.name].append(measured)
    return list(figures(rounds))


@contextlib.contextmanager
def product(name: str, database_url: str) -> Iterator[Contestant]:
    """The product with a sample season, and a key that calls it."""
    made = install(database_url)
    header = f"Authorization: Bearer {made.key}"
    with (
        serving_product(made) as server,
        processor(ROOT / ".venv/bin/python", "wsgi:app", BOOKINGS, header, **made.environ) as calls,
    ):
        yield Contestant(name, server.port, BOOKINGS, header, calls)


@contextlib.contextmanager
def yardstick(name: str, where: str, header: str, folder: Path) -> Iterator[Contestant]:
    environ = {"BENCH_FOLDER": str(folder)}
    options = [*gunicorn_options(), "--worker-class=gthread", "--chdir=bench"]
    command = [str(BENCH_PYTHON.parent / "gunicorn"), *options, where]
    with (
        serving(command, **environ) as server,
        processor(BENCH_PYTHON, where, "/bookings", header, **environ) as calls,
    ):
        yield Contestant(name, server.port, "/bookings", header, calls)


@contextlib.contextmanager
def processor(
    python: Path, where: str, path: str, header: str, **environ: str
) -> Iterator[Callable[[int], float]]:
    with subprocess.Popen(  # noqa: S603
        [str(python), "bench/processor.py", where, path, *([header] if header else [])],
        cwd=ROOT,
        env=os.environ | environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:

        def calls(number: int) -> float:
            assert child.stdin is not None and child.stdout is not None  # noqa: PT018, S101
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            return float(child.stdout.readline())

        yield calls


def burst(contestant: Contestant) -> Round:
    """Ask for some seconds with 8 clients; every answer must be a good one."""
    headers = [f"-H{contestant.header}"] if contestant.header else []
    said = run(
        *("wrk", "-t1", f"-c{CLIENTS}", f"-d{SECONDS}s", "--latency", *headers),
        f"http://127.0.0.1:{contestant.port}{contestant.path}",
    )
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{contestant.name} failed under load:\n{said}")
    slowest = re.search(r"99%\s+([0-9.]+)(us|ms|s)", said)
    per_second = re.search(r"Requests/sec:\s+([0-9.]+)", said)
    assert slowest is not None and per_second is not None  # noqa: PT018, S101
    return Round(
        float(per_second[1]),
        float(slowest[1]) * {"us": 0.001, "ms": 1, "s": 1_000}[slowest[2]],
        contestant.calls(CALLS),
    )


def figures(rounds: dict[str, list[Round]]) -> Iterator[Figure]:
    for ours, bars in BARS.items():
        for other, bar in zip((BARE, DRF), bars, strict=True):
            # Of each its own best: a round in which only the other one stumbled flatters nobody.
            best, its = (max(each.per_second for each in rounds[who]) for who in (ours, other))
            what = f"An audited call on {ours}: best throughput of {ROUNDS} rounds against {other}"
            yield Figure(what, [best / its], bar=bar, at_least=True)
        slowest = [each.slowest for each in rounds[ours]]
        yield Figure(f"An audited call on {ours}: the slowest 1 %", slowest, "ms", SLOWEST)
    pairs = zip(rounds[SQLITE], rounds[DRF], strict=True)
    ratios = [mine.processor / its.processor for mine, its in pairs]
    what = f"An audited call on {SQLITE}: processor time against {DRF}"
    yield Figure(what, ratios, bar=PROCESSOR)
    for name, all_of in rounds.items():
        yield Figure(f"{name}: answers", [each.per_second for each in all_of], "a second")
        yield Figure(f"{name}: processor time of a call", [each.processor for each in all_of], "µs")
