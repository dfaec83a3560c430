"""A key is served while strangers send the worst that they can: real gunicorn, 8 connections."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from urllib.parse import urlencode

import pytest
from flask import Flask
from sqlalchemy import insert

from convene_keys import clock
from convene_keys.accounts.sign_in import TRIES_PER_NETWORK
from convene_keys.db.session import db
from convene_keys.models import SignInAttempt
from convene_keys.operations.table import ROOT
from tests import factories
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


CONNECTIONS = 8
TRIES = 5  # that are made before there are too many: each takes a quarter of a second


def attack(port: int, throttled: Event, over: Event, told: Queue[Counter[int]]) -> None:
    """All attackers, in a process of their own, since they must not hold up who measures."""

    def go_on(_: int) -> Counter[int]:
        """Send one bad form after the other, on a new connection where one is lost."""
        statuses = Counter[int]()
        while not over.is_set():
            with suppress(OSError, HTTPException), Visitor(port) as visitor:
                token = visitor.csrf_token("/login")
                bodies = [urlencode(form | {"csrf_token": token}).encode() for form in WORST]
                bodies += [b"csrf_token=" + token.encode() + b"&" + raw for raw in RAW]
                while not over.is_set():
                    in_turn = [visitor.send("POST", "/login", body, {})[0] for body in bodies]
                    statuses.update(in_turn)
                    if set(in_turn) <= {413, 429}:
                        throttled.set()
        return statuses

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for statuses in pool.map(go_on, range(CONNECTIONS)):
            told.put(statuses)


@pytest.mark.on_sqlite
def test_a_key_is_served_during_an_attack(app: Flask, database_url: str, tmp_path: Path) -> None:
    """How fast, `python -m bench.run attack` tells."""
    organization = factories.organization()
    _, secret = factories.api_key(organization, creator=factories.member(organization))
    earlier = {"at": clock.now(), "email_digest": bytes(32), "network": "127.0.0.1"}
    db.session.execute(insert(SignInAttempt), [earlier] * (TRIES_PER_NETWORK - TRIES))
    db.session.commit()
    db.session.remove()
    forks = multiprocessing.get_context("forkserver")
    throttled, over, told = forks.Event(), forks.Event(), forks.Queue()
    with Server(database_url, tmp_path / "log") as server:
        attackers = forks.Process(target=attack, args=(server.port, throttled, over, told))
        attackers.start()
        try:
            assert throttled.wait(120)  # as after any real attack's first second
            with Visitor(server.port, Authorization=f"Bearer {secret}") as caller:
                for _ in range(10):
                    assert caller.get(f"{ROOT}/me")[0] == 200
        finally:
            over.set()
        answers = [told.get(timeout=60) for _ in range(CONNECTIONS)]
        attackers.join(timeout=60)
    assert attackers.exitcode == 0
    assert set().union(*answers) == {413, 422, 429}
    assert all(answers)
