"""How much an audited call of a key costs, against two yardsticks on the same gunicorn.

Prints a table and writes bench/results.json. Only ratios mean anything: the machine's own speed
drifts, so the servers are asked in turn, round by round, and each round gives its own ratio.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROUNDS, SECONDS, CLIENTS = 7, 4, 8
GUNICORN = ["-k", "gthread", "-w", "2", "--threads", "4", "--worker-tmp-dir", "/dev/shm"]  # noqa: S108
PASSWORD = "a password for one benchmark only"  # noqa: S105


@dataclass(frozen=True)
class Round:
    """One burst of requests: answers a second, and the slowest 1 % in milliseconds."""

    per_second: float
    slowest_ms: float


@dataclass(frozen=True)
class Contestant:
    name: str
    port: int
    path: str
    headers: dict[str, str]


def main() -> None:
    if shutil.which("wrk") is None:
        sys.exit("The benchmarks need wrk. Please install it: apt-get install -y wrk")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        ours = stack.enter_context(convene_keys(Path(folder)))
        bare = stack.enter_context(yardstick("bare Flask view", "bare:app", {}, Path(folder)))
        key = run(ROOT / ".venv-bench/bin/python", "bench/drf.py", BENCH_FOLDER=folder)
        authorization = {"Authorization": f"Api-Key {key}"}
        drf = stack.enter_context(
            yardstick(
                "DRF + api-key, verifying only", "drf:application", authorization, Path(folder)
            )
        )
        contestants = (bare, drf, ours)
        rounds: dict[str, list[Round]] = {each.name: [] for each in contestants}
        for number in range(-1, ROUNDS):  # the first warms everybody up and does not count
            for each in contestants:
                measured = burst(each)
                if number >= 0:
                    rounds[each.name].append(measured)
    report(rounds, ours.name, (bare.name, drf.name))


@contextlib.contextmanager
def convene_keys(folder: Path) -> Iterator[Contestant]:
    """The product on SQLite with its own gunicorn configuration, a sample season and a key."""
    environ = {
        "DATABASE_URL": f"sqlite:///{folder}/convene.db",
        "SECRET_KEY": secrets.token_hex(32),
        "KEY_PEPPER": secrets.token_hex(32),
        "KEY_RATE_LIMIT": "9999999/minute",  # calls are counted as ever, and none is refused
    }
    flask = (ROOT / ".venv/bin/flask", "--app", "wsgi")
    run(*flask, "db", "upgrade", **environ)
    organization = run(
        *(*flask, "organization", "create", "--name", "Bench", "--admin-name", "Maya"),
        *("--admin-email", "maya@example.org", "--password-stdin"),
        stdin=PASSWORD,
        **environ,
    )
    run(*flask, "sample-data", "--organization", organization, **environ)
    creator = ("--created-by", "maya@example.org")
    key = run(
        *flask,
        "keys",
        "create",
        "--organization",
        organization,
        "--name",
        "Bench",
        *creator,
        **environ,
    )
    port = free_port()
    command = [
        *(str(ROOT / ".venv/bin/gunicorn"), "-c", "deploy/gunicorn.conf.py"),
        *("--access-logfile", "/dev/null", "-b", f"127.0.0.1:{port}", "wsgi:app"),
    ]
    contestant = Contestant(
        "Convene Keys, audited, SQLite",
        port,
        "/api/v1/admin/bookings?limit=10",
        {"Authorization": f"Bearer {key}"},
    )
    with serving(command, contestant, **environ):
        yield contestant


@contextlib.contextmanager
def yardstick(
    name: str, application: str, headers: dict[str, str], folder: Path
) -> Iterator[Contestant]:
    port = free_port()
    command = [
        *(str(ROOT / ".venv-bench/bin/gunicorn"), *GUNICORN, "--chdir", "bench"),
        *("-b", f"127.0.0.1:{port}", application),
    ]
    contestant = Contestant(name, port, "/bookings", headers)
    with serving(command, contestant, BENCH_FOLDER=str(folder)):
        yield contestant


@contextlib.contextmanager
def serving(command: list[str], contestant: Contestant, **environ: str) -> Iterator[None]:
    process = subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        env=os.environ | environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 30
        while not answers(contestant):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{contestant.name} does not start: {' '.join(command)}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def answers(contestant: Contestant) -> bool:
    address = f"http://127.0.0.1:{contestant.port}{contestant.path}"
    request = urllib.request.Request(address, headers=contestant.headers)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310
            return len(json.load(answer)["data"]) == 10
    except OSError:
        return False


def burst(contestant: Contestant) -> Round:
    """Ask for some seconds with 8 clients; every answer must be a good one."""
    headers = [f"-H{name}: {value}" for name, value in contestant.headers.items()]
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
        float(per_second[1]), float(slowest[1]) * {"us": 0.001, "ms": 1, "s": 1_000}[slowest[2]]
    )


def report(rounds: dict[str, list[Round]], ours: str, against: tuple[str, ...]) -> None:
    results: dict[str, object] = {
        "rounds": {name: [asdict(each) for each in all_of] for name, all_of in rounds.items()}
    }
    write = sys.stdout.write
    write(f"\n{'':40}{'median':>9}{'best':>9}\n")
    for name in against:
        ratios = [
            mine.per_second / other.per_second
            for mine, other in zip(rounds[ours], rounds[name], strict=True)
        ]
        results[f"throughput against {name}"] = ratios
        # Of each its own best round: a round in which only the other one stumbled flatters nobody.
        best, bar = (max(each.per_second for each in rounds[who]) for who in (ours, name))
        write(f"{f'× {name}':40}{statistics.median(ratios):9.2f}{best / bar:9.2f}\n")
    slowest = [each.slowest_ms for each in rounds[ours]]
    write(f"{'slowest 1 %, ms':40}{statistics.median(slowest):9.1f}{min(slowest):9.1f}\n")
    (ROOT / "bench/results.json").write_text(json.dumps(results, indent=2) + "\n")


def run(*command: object, stdin: str = "", **environ: str) -> str:
    done = subprocess.run(  # noqa: S603
        [str(part) for part in command],
        cwd=ROOT,
        env=os.environ | environ,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main()
