"""Lighthouse's scores for sign-in, the key list and the audit log: `python -m bench.lighthouse`.

Needs Node 18 or newer, npx and Chromium. Prints a table in Markdown and what each missing point
is for; exits with 1 unless every score is 1.00.
"""

import json
import os
import shutil
import subprocess
import sys
from typing import Any

from tests.servers import Server, Visitor, serving_demo

VERSION = "12.2.3"
TRIES = 3
CATEGORIES = ("performance", "accessibility", "best-practices")
PAGES = ("/login", "/admin/api_keys", "/admin/audit_log")
FLAGS = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None or shutil.which("npx") is None:
        sys.exit("Lighthouse needs Chromium and Node with npx. Please install them.")
    perfect = True
    print(f"| page, as on a | {' | '.join(CATEGORIES)} |\n| --- |{' --- |' * len(CATEGORIES)}")
    with serving_demo() as (server, email, password):
        cookies = _sign_in(server, email, password)
        for path in PAGES:
            for device in ("phone", "desktop"):
                headers = {} if path == "/login" else {"Cookie": cookies}
                report = run_once(chromium, server.url + path, device, headers)
                scores = [report["categories"][name]["score"] for name in CATEGORIES]
                print(f"| {path}, {device} | {' | '.join(f'{score:.2f}' for score in scores)} |")
                perfect &= all(score == 1 for score in scores)
                for fault in _faults(report):
                    print(f"<!-- {fault} -->")
    sys.exit(not perfect)


def _sign_in(server: Server, email: str, password: str) -> str:
    with Visitor(server.port) as visitor:
        token = visitor.csrf_token("/login")
        status, _ = visitor.post("/login", email=email, password=password, csrf_token=token)
        if status != 303:
            sys.exit(f"Signing in to the demo answered {status}.")
        return visitor.cookies


def run_once(chromium: str, url: str, device: str, headers: dict[str, str]) -> dict[str, Any]:
    """Lighthouse's report on one page; now and then it misses a load's beginning and is run again."""
    for _ in range(TRIES):
        done = subprocess.run(  # noqa: S603
            [
                *("npx", "--yes", f"lighthouse@{VERSION}", url, "--quiet", "--output=json"),
                *(f"--only-categories={','.join(CATEGORIES)}", f"--chrome-flags={FLAGS}"),
                f"--extra-headers={json.dumps(headers)}",
                *(["--preset=desktop"] if device == "desktop" else []),
            ],
            env=os.environ | {"CHROME_PATH": chromium},
            capture_output=True,
            text=True,
            check=False,
        )
        if "NO_NAVSTART" not in done.stdout + done.stderr:
            break
    if done.returncode:
        sys.exit(f"Lighthouse failed on {url}: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _faults(report: dict[str, Any]) -> list[str]:
    """The audits that take points away, heaviest first."""
    found = []
    for category in CATEGORIES:
        for ref in report["categories"][category]["auditRefs"]:
            audit = report["audits"][ref["id"]]
            if ref["weight"] and audit["score"] is not None and audit["score"] < 1:
                shown = audit.get("displayValue", "")
                found.append((-ref["weight"], f"{audit['title']} {shown}: {audit['score']:.2f}"))
    return [text for _, text in sorted(found)]


if __name__ == "__main__":
    main()
