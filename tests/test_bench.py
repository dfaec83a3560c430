"""What the benchmarks are made of: data that the product takes for its own, and honest figures."""

import json
from functools import partial
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from bench import fill, lighthouse
from bench.report import Figure, report
from convene_keys.audit import export, seals
from convene_keys.audit import queries as audit_queries
from convene_keys.audit.queries import Filter
from convene_keys.db.session import db
from convene_keys.keys import queries as key_queries
from tests import factories


@pytest.fixture
def database_url(own_database_url: str) -> str:
    return own_database_url


@pytest.fixture
def app(own_app: Flask) -> Flask:
    return own_app


def test_filled_database_is_one_the_product_reads_and_guards(app: Flask, database_url: str) -> None:
    organization = factories.organization()
    factories.api_key(organization, creator=factories.member(organization))
    ids = (organization.id, db.session.scalar(text("SELECT max(id) FROM api_key")))
    assert ids == (1, 1), "what it fills belongs to organization 1, of which key 1 is"
    db.session.remove()
    db.engine.dispose()

    fill.keys(database_url, 2, 100)
    fill.events(database_url, 400)

    session = db.session()
    assert key_queries.list_keys(session, 1, status="all").total == 100
    assert audit_queries.count(session, 1, Filter()) == audit_queries.Count(400)
    page = audit_queries.page(session, 1, Filter(key=1), before=None, limit=60)
    events = page.events
    assert len(events) == 60
    assert page.before == events[-1].id
    assert {export.as_dict(event)["key_name"] for event in events} == {"Stall 1"}
    assert events[0].detail == {"count": 10}
    assert [event.at for event in events] == sorted((e.at for e in events), reverse=True)
    with pytest.raises(DBAPIError, match="audit events can not be"):
        session.execute(text("DELETE FROM audit_event"))
    session.rollback()
    assert seals.seal() == {1: 400}


def test_report_says_what_is_past_its_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = [
        Figure("quick", [1.0, 3.0, 1.2], bar=1.3),
        Figure("slow", [1.0, 3.0, 2.0], bar=1.3),
        Figure("much", [0.5, 0.3], bar=0.41, at_least=True),
        Figure("plain", [12_345.6], "a second"),
    ]
    report(figures, tmp_path / "results.json")
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| quick | 1.20 × | 1.00–3.00 | ≤ 1.3 |",
        "| slow | 2.00 × | 1.00–3.00 | ≤ 1.3 **missed** |",
        "| much | 0.40 × | 0.30–0.50 | ≥ 0.41 **missed** |",
        "| plain | 12,346 a second |  |  |",
    ]
    results = json.loads((tmp_path / "results.json").read_text())
    assert results[0]["values"] == [1.0, 3.0, 1.2]
    assert results[0]["median"] == 1.2


def test_lighthouse_is_run_again_when_it_missed_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npx = tmp_path / "npx"
    npx.write_text(
        f"#!/bin/sh\necho run >> {tmp_path}/runs\n"
        f'[ "$(wc -l < {tmp_path}/runs)" = 3 ] && echo "{{}}" && exit\n'
        'echo "LighthouseError: NO_NAVSTART" >&2; exit 1\n'
    )
    npx.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run = partial(lighthouse.run_once, "chromium", "http://127.0.0.1", "phone", {})
    assert run() == {}
    (tmp_path / "runs").write_text("run\n" * 3)
    with pytest.raises(SystemExit, match="NO_NAVSTART"):
        run()
    assert (tmp_path / "runs").read_text().count("run") == 6, "it gave up after three tries"
