"""A caller of `/mcp` within the test, and a real server with two organizations, once a session."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mcp_types
import pytest
from flask import Flask
from sqlalchemy import select, update

from convene_keys import clock, create_app
from convene_keys.db.session import db
from convene_keys.mcp.protocol import STATELESS
from convene_keys.models import ApiKey, AuditEvent, Organization
from tests import factories
from tests.conftest import Browser
from tests.databases import environ
from tests.servers import Server

META = {
    mcp_types.PROTOCOL_VERSION_META_KEY: "2026-07-28",
    mcp_types.CLIENT_CAPABILITIES_META_KEY: {},
}
CLIENT = {"name": "curl", "version": "8"}


@dataclass
class Market:
    """A served organization; `app` reads and changes its database beside the server."""

    app: Flask
    server: Server
    organization_id: int

    @property
    def url(self) -> str:
        return f"{self.server.url}/mcp"

    def key(self, name: str = "Claude on laptop", **values: object) -> str:
        """The secret of a new key."""
        with self.reading():
            of = db.session.get_one(Organization, self.organization_id)
            return factories.api_key(of, name, **values)[1]

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Its database, as it is now."""
        with self.app.app_context():
            yield
            db.session.remove()

    def revoke_keys(self) -> None:
        with self.reading():
            db.session.execute(
                update(ApiKey)
                .where(ApiKey.organization_id == self.organization_id)
                .values(revoked_at=clock.now(), released_at=clock.now())
            )
            db.session.commit()

    def events(self) -> list[tuple[str, str, str]]:
        """Action, outcome and target of all that happened, oldest first."""
        with self.reading():
            found = db.session.scalars(
                select(AuditEvent)
                .where(AuditEvent.organization_id == self.organization_id)
                .order_by(AuditEvent.id)
            )
            return [(e.action, e.outcome, e.target_name or "") for e in found]

    def calls(self) -> list[tuple[str, str, str]]:
        """The same without the greeting, which not every client sends."""
        return [event for event in self.events() if event[0] != "key.connected"]


@pytest.fixture(scope="session")
def served(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Flask, Server]]:
    folder = tmp_path_factory.mktemp("mcp")
    shutil.copy(sqlite_template, folder / "served.db")
    url = f"sqlite:///{folder}/served.db"
    with Server(url, folder / "server.log", workers=1) as server:
        app = create_app(environ(url))
        with app.app_context():  # the tests wait their turn among the server's writers
            db.engine.update_execution_options(sqlite_begin="IMMEDIATE")
        yield app, server


def _market(app: Flask, server: Server, name: str) -> Market:
    with app.app_context():
        organization = factories.organization(name)
        factories.market_data(organization)
        number = organization.id
        db.session.remove()
    return Market(app, server, number)


@pytest.fixture
def market(served: tuple[Flask, Server]) -> Market:
    """An organization of this test's own: market, date and vendor 1, bookings 1 to 3, pending."""
    return _market(*served, "Riverside Market")


@pytest.fixture
def elsewhere(served: tuple[Flask, Server]) -> Market:
    """Another organization with the same things."""
    return _market(*served, "Elsewhere Market")


class Caller:
    """Sends messages with a key; looks at what every answer must carry."""

    def __init__(self, client: Browser, secret: str | None) -> None:
        self._client = client
        self.headers = {"Authorization": f"Bearer {secret}"} if secret else {}

    def post(self, status: int, **request: Any) -> Any:
        headers = self.headers | request.pop("headers", {})
        answer = self._client.post("/mcp", headers=headers, **request)
        assert answer.status_code == status, answer.text
        assert "Set-Cookie" not in answer.headers
        if answer.data:
            assert answer.mimetype == "application/json"
            assert answer.headers["Cache-Control"] == "no-store"
        return answer

    def call(
        self, method: str, status: int = 200, version: str = "2025-11-25", **params: Any
    ) -> Any:
        """The answer's JSON to a request in a version's own form."""
        headers = {"MCP-Protocol-Version": version}
        if version in STATELESS:
            params["_meta"] = META | params.get("_meta", {})
            headers["Mcp-Method"] = method
            name = params.get("name", params.get("uri"))
            if name is not None:
                headers["Mcp-Name"] = name
        body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
        answer = self.post(status, json=body, headers=headers)
        assert answer.json["jsonrpc"] == "2.0"
        assert answer.json["id"] == 7
        return answer.json

    def raw(self, status: int, body: Any, **headers: str) -> Any:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body)
        request = {"data": data, "content_type": "application/json", "headers": named}
        answer = self.post(status, **request)
        return answer.json if answer.data else None


@pytest.fixture
def caller(client: Browser, key: tuple[ApiKey, str]) -> Caller:
    return Caller(client, key[1])


def events(organization: Organization) -> list[AuditEvent]:
    found = select(AuditEvent).where(AuditEvent.organization_id == organization.id)
    return list(db.session.scalars(found.order_by(AuditEvent.id)))
