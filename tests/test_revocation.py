"""Revoked means revoked: under load, on all workers, from the moment the answer is there."""

import threading
import time
from contextlib import ExitStack
from pathlib import Path

from flask import Flask

from convene_keys import passwords
from tests import factories as make
from tests.databases import PEPPER
from tests.servers import Server, Visitor

ROUNDS, CLIENTS = 200, 8
PASSWORD = "correct horse battery staple"


class Client(threading.Thread):
    """Calls the API without a pause with the current round's key; notes when each call began."""

    def __init__(self, port: int, tokens: list[str], rounds: "Rounds") -> None:
        super().__init__(daemon=True)
        self.port, self.tokens, self.rounds = port, tokens, rounds
        self.calls: list[list[tuple[float, int]]] = [[] for _ in tokens]

    def run(self) -> None:
        while (number := self.rounds.current) is not None:
            with Visitor(self.port, Authorization=f"Bearer {self.tokens[number]}") as visitor:
                while self.rounds.current == number:
                    began = time.monotonic()
                    status, _ = visitor.get("/api/v1/admin/me")
                    self.calls[number].append((began, status))
                    self.rounds.tell()


class Rounds:
    def __init__(self) -> None:
        self.current: int | None = 0
        self._news = threading.Condition()

    def tell(self) -> None:
        with self._news:
            self._news.notify_all()

    def wait_until(self, condition) -> None:
        with self._news:
            assert self._news.wait_for(condition, timeout=30), "the clients stand still"


def test_no_call_that_began_after_the_answer_is_accepted(
    app: Flask, database_url: str, tmp_path: Path
) -> None:
    of = make.organization()
    maya = make.member(
        of, email="maya@example.org", password_hash=passwords.hash_password(PASSWORD, [PEPPER])
    )
    made = [make.api_key(of, f"Key {number}", creator=maya) for number in range(ROUNDS)]
    ids, tokens = [key.id for key, _ in made], [token for _, token in made]
    with ExitStack() as stack:
        server = stack.enter_context(Server(database_url, tmp_path / "server.log"))
        browser = stack.enter_context(Visitor(server.port))
        login = browser.csrf_token("/login")
        signed_in, _ = browser.post(
            "/login", email="maya@example.org", password=PASSWORD, csrf_token=login
        )
        assert signed_in == 303
        csrf_token = browser.csrf_token("/admin/api_keys/new")

        rounds = Rounds()
        clients = [Client(server.port, tokens, rounds) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        answered = []
        for number in range(ROUNDS):
            rounds.current = number
            rounds.wait_until(lambda n=number: all(client.calls[n] for client in clients))
            status, _ = browser.post(f"/admin/api_keys/{ids[number]}/revoke", csrf_token=csrf_token)
            moment = time.monotonic()
            assert status == 303
            answered.append(moment)
            rounds.wait_until(
                lambda n=number, m=moment: all(client.calls[n][-1][0] > m for client in clients)
            )
        rounds.current = None
        for client in clients:
            client.join(timeout=30)

    calls = [
        (began > answered[number], status)
        for client in clients
        for number in range(ROUNDS)
        for began, status in client.calls[number]
    ]
    after = [status for is_after, status in calls if is_after]
    assert len(after) >= ROUNDS * CLIENTS
    assert set(after) == {401}
    assert {status for is_after, status in calls if not is_after} == {200, 401}
