"""A key is served while strangers send the worst that they can: real gunicorn, 8 connections."""

import itertools
import threading
import time
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlencode

import pytest
from flask import Flask

from convene_keys.db.session import db
from convene_keys.operations.table import ROOT
from tests import factories as make
from tests.conftest import wait_for
from tests.servers import Server, Visitor

MARKS = "\u0301\u0316"
# As long as the server lets through.
WORST = [
    {"email": MARKS * 2_600, "password": "x"},
    {"email": "x", "password": MARKS * 2_600},
    {"email": MARKS * 126, "password": MARKS * 128},
    {"email": "x", "password": "x", "next": "/" + MARKS * 2_600},
    {"email": "\ufdfa" * 254, "password": "\ufdfa" * 256},
]
RAW = [
    b"email=" + (MARKS * 15_300).encode() + b"&password=x",
    b"a&" * 30_000,
    b"email=" + b"%" * 64_000,
]


class Attacker(threading.Thread):
    """Sends one bad form after the other, and keeps the answers' statuses."""

    def __init__(self, port: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.statuses: set[int] = set()
        self._port, self._over = port, over

    def run(self) -> None:
        with Visitor(self._port) as visitor:
            token = visitor.csrf_token("/login")
            bodies = [urlencode(form | {"csrf_token": token}).encode() for form in WORST]
            bodies += [b"csrf_token=" + token.encode() + b"&" + raw for raw in RAW]
            for body in itertools.cycle(bodies):
                if self._over.is_set():
                    return
                self.statuses.add(visitor.send("POST", "/login", body, {})[0])


@pytest.mark.parametrize(
    ("seconds", "bar"), [(1, None), pytest.param(30, 0.05, marks=pytest.mark.soak)]
)
def test_a_key_is_served_during_an_attack(
    app: Flask, database_url: str, tmp_path: Path, seconds: int, bar: float | None
) -> None:
    organization = make.organization()
    _, secret = make.api_key(organization, creator=make.member(organization))
    db.session.remove()
    over, took = threading.Event(), []
    with Server(database_url, tmp_path / "log") as server:
        attackers = [Attacker(server.port, over) for _ in range(8)]
        for attacker in attackers:
            attacker.start()
        # The address is throttled by then, as after any real attack's first second.
        wait_for(lambda: all(429 in attacker.statuses for attacker in attackers), 120)
        with Visitor(server.port, Authorization=f"Bearer {secret}") as caller:
            end = time.monotonic() + seconds
            while (began := time.monotonic()) < end:
                assert caller.get(f"{ROOT}/me")[0] == 200
                took.append(time.monotonic() - began)
                time.sleep(0.01)
        over.set()
        for attacker in attackers:
            attacker.join(timeout=60)
            assert attacker.statuses <= {413, 422, 429}
    if bar is not None:
        p99 = quantiles(took, n=100)[98]
        print(f"{len(took)} calls, p99 {p99 * 1_000:.0f} ms, slowest {max(took) * 1_000:.0f} ms")
        assert p99 <= bar
