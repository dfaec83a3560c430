"""The benchmarks, by name: `make bench` is what a call costs, `make bench-growth` the rest.

Prints a table in Markdown and writes bench/results.json, with every round of every figure.
"""

import shutil
import signal
import sys
import tempfile
from pathlib import Path

from bench import attack, call, checkup, growth, scan, service, tool
from bench.report import report
from bench.servers import ROOT, postgresql

PARTS = {
    "call": call.measure,
    "tool": tool.measure,
    "service": service.measure,
    "attack": attack.measure,
    "scan": scan.measure,
    "checkup": checkup.measure,
    "growth": growth.measure,
}
DISK = 25 * 10**9  # two databases of ten million events, and what filling them takes


def stop(*_: object) -> None:
    """End once what is being filled is full, so that servers and gigabytes are cleared away."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("Stopped.")


def main() -> None:
    signal.signal(signal.SIGTERM, stop)
    chosen = sys.argv[1:] or list(PARTS)
    if shutil.which("wrk") is None:
        sys.exit("The benchmarks need wrk. Please install it: apt-get install -y wrk")
    if "growth" in chosen and shutil.disk_usage(tempfile.gettempdir()).free < DISK:
        sys.exit(
            f"The benchmarks need 25 GB in {tempfile.gettempdir()}. Set TMPDIR to another place."
        )
    with tempfile.TemporaryDirectory() as folder, postgresql(Path(folder)) as postgres:
        figures = [figure for part in chosen for figure in PARTS[part](Path(folder), postgres)]
    report(figures, ROOT / "bench/results.json")


if __name__ == "__main__":
    main()
