"""What the API really answers to the reference's examples: `make reference` writes it down anew.

The inputs stand in `convene_keys/operations/reference.json`, by hand; the answers to them are put beside them.
"""

import json
import logging
import re
import tempfile
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flask import Flask
from flask_migrate import upgrade

from convene_keys import clock, create_app
from convene_keys.audit.log import Actor
from convene_keys.db.session import db
from convene_keys.keys import tokens
from convene_keys.markets import sample
from convene_keys.operations import reference
from convene_keys.operations.table import BY_NAME, OPERATIONS, ROOT, Operation
from tests import factories
from tests.conftest import new_browser
from tests.databases import environ

FILE = Path(reference.__file__).with_suffix(".json")
NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
# A key that was never given to anybody; an example shows its first characters.
TOKEN = tokens.mint(lambda alphabet: alphabet[10])
AGENT = {"User-Agent": "Mozilla/5.0 (assistant)"}


def request_of(operation: Operation, given: dict[str, Any]) -> dict[str, Any]:
    """The call with this input, as a test client takes it.

    It asks for no description, which wants an answer: a new operation has none yet.
    """
    rest = {name: value for name, value in given.items() if f"{{{name}}}" not in operation.path}
    query, body = (rest, {}) if operation.method == "GET" else ({}, rest)
    return {
        "path": ROOT + operation.path.format_map(given),
        "method": operation.method,
        "query_string": query,
        **({"json": body} if body else {}),
    }


def answers(app: Flask) -> dict[str, Any]:
    """The whole file, made anew in the empty database of `app`, whose context is open."""
    inputs = {
        name: row["input"] for name, row in json.loads(FILE.read_text())["operations"].items()
    }
    with ExitStack() as stack:
        stack.enter_context(patch.object(clock, "now", lambda: NOON))
        organization = factories.organization("Tidewater Markets")
        organization.slug = "tidewater-markets"
        db.session.commit()
        sample.make(Actor.system(organization.id))
        maya = factories.member(organization)
        factories.api_key(organization, "Claude on Maya’s laptop", creator=maya, token=TOKEN)
        _, reader = factories.api_key(organization, "Website", creator=maya, scope="read")
        client = new_browser(app)

        def ask(token: str | None = TOKEN, **call: Any) -> Any:
            headers = AGENT | ({"Authorization": f"Bearer {token}"} if token else {})
            text = client.open(**call, headers=headers).text
            return json.loads(
                re.sub(r'(request_id": ?")[0-9a-v]{16}', r"\g<1>59f04e7c2bd81a36", text)
            )

        found = {
            o.name: {"input": inputs[o.name], "answer": ask(**request_of(o, inputs[o.name]))}
            for o in OPERATIONS
        }
        decline = request_of(BY_NAME["decline_booking"], inputs["decline_booking"])
        post = {"path": decline["path"], "method": "POST"}
        problems = [
            ask(path=f"{ROOT}/bookings?cursor=next"),
            ask(None, path=f"{ROOT}/me"),
            ask(reader, **decline),
            ask(path=f"{ROOT}/bookings/9999"),
            ask(path=f"{ROOT}/bookings", method="DELETE"),
            ask(path=f"{ROOT}/bookings/111/approve", method="POST"),
            ask(**post, data=b"x" * 32_769, content_type="application/json"),
            ask(**post, data=b"reason=Full", content_type="text/plain"),
            ask(path=f"{ROOT}/bookings?limit=500"),
            *[ask(None, path=f"{ROOT}/me") for _ in range(60)][-1:],
        ]
    away = create_app(environ("postgresql+psycopg://nobody@127.0.0.1:1/nothing"))
    client = new_browser(away)
    problems.append(ask(path=f"{ROOT}/me"))
    text = json.dumps({str(p["status"]): p for p in problems}, ensure_ascii=False)
    base_url = app.config["SETTINGS"].base_url
    return {
        "operations": found,
        "problems": json.loads(text.replace(base_url, reference.EXAMPLE_URL)),
    }


def main() -> None:
    logging.disable()  # the database that is away
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(environ(f"sqlite:///{folder}/reference.db"))
        with app.app_context():
            upgrade()
            found = answers(app)
            db.session.remove()
            db.engine.dispose()
    FILE.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
