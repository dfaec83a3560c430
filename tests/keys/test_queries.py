"""Lists of keys: which, in what order, how many to a page, and what is said beside them."""

from datetime import timedelta

import pytest
from flask import Flask

from convene_keys import clock
from convene_keys.db.session import db
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, Member, Organization
from tests import factories
from tests.conftest import Clock


@pytest.fixture
def organization(app: Flask) -> Organization:
    return factories.organization()


@pytest.fixture
def maya(organization: Organization) -> Member:
    return factories.member(organization)


@pytest.fixture
def shelf(organization: Organization, maya: Member, fake_clock: Clock) -> Organization:
    """Keys in every state, an hour apart, and one elsewhere."""
    now = clock.now()
    for name, more in (
        ("Bravo", {"last_used_at": now - timedelta(days=2)}),
        ("alpha 50%", {"last_used_at": now - timedelta(days=1)}),
        ("Charlie", {"expires_at": now + timedelta(days=3)}),
        ("Delta", {"revoked_at": now, "released_at": now}),
        ("Echo", {"expires_at": now - timedelta(days=1)}),
        ("Élan_", {"expires_at": now + timedelta(days=30)}),
    ):
        factories.api_key(organization, name, creator=maya, created_at=clock.now(), **more)
        fake_clock.advance(hours=1)
    factories.api_key(factories.organization(), "Elsewhere")
    return organization


def _names(page: key_queries.KeyPage) -> list[str]:
    return [key.name for key in page.keys]


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("active", ["Élan_", "Charlie", "alpha 50%", "Bravo"]),
        ("expiring", ["Charlie"]),
        ("revoked", ["Echo", "Delta"]),
        ("all", ["Élan_", "Echo", "Delta", "Charlie", "alpha 50%", "Bravo"]),
    ],
)
def test_list_by_status(shelf: Organization, status: str, expected: list[str]) -> None:
    page = key_queries.list_keys(db.session(), shelf.id, status=status)
    assert _names(page) == expected
    assert (page.total, page.page, page.pages) == (len(expected), 1, 1)


@pytest.mark.parametrize(
    ("sort", "descending", "expected"),
    [
        ("name", False, ["alpha 50%", "Bravo", "Charlie", "Élan_"]),
        ("name", True, ["Élan_", "Charlie", "Bravo", "alpha 50%"]),
        ("created", False, ["Bravo", "alpha 50%", "Charlie", "Élan_"]),
        ("last_used", True, ["alpha 50%", "Bravo", "Élan_", "Charlie"]),
        ("last_used", False, ["Charlie", "Élan_", "Bravo", "alpha 50%"]),
    ],
)
def test_list_sorted(shelf: Organization, sort: str, descending: bool, expected: list[str]) -> None:
    page = key_queries.list_keys(db.session(), shelf.id, sort=sort, descending=descending)
    assert _names(page) == expected


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        ("ALPHA", ["alpha 50%"]),
        ("%", ["alpha 50%"]),
        ("_", ["Élan_"]),
        ("E\u0301LAN", ["Élan_"]),
        ("elsewhere", []),
        ("x" * 10_000, []),
    ],
)
def test_list_searched_by_name(shelf: Organization, q: str, expected: list[str]) -> None:
    assert _names(key_queries.list_keys(db.session(), shelf.id, q=q)) == expected


def test_list_search_with_odd_characters_fails_no_database(shelf: Organization) -> None:
    for q in ("\0", "a\0", "\ud800"):
        assert key_queries.list_keys(db.session(), shelf.id, q=q).page == 1


def test_list_in_pages(shelf: Organization) -> None:
    found = []
    for number in (1, 2, 3):
        page = key_queries.list_keys(db.session(), shelf.id, status="all", page=number, page_size=2)
        assert (page.page, page.pages, page.total) == (number, 3, 6)
        found += _names(page)
    assert len(set(found)) == 6
    for number, nearest in ((99, 3), (0, 1), (-5, 1)):
        page = key_queries.list_keys(db.session(), shelf.id, status="all", page=number, page_size=2)
        assert page.page == nearest
        assert len(page.keys) == 2
    empty = key_queries.list_keys(db.session(), factories.organization().id)
    assert (empty.keys, empty.total, empty.pages) == ([], 0, 1)


def test_choices_tell_which_keys_have_ended(shelf: Organization) -> None:
    found = [(key.name, key.ended) for key in key_queries.choices(db.session(), shelf.id)[0]]
    assert found == [
        ("alpha 50%", False),
        ("Bravo", False),
        ("Charlie", False),
        ("Delta", True),
        ("Echo", True),
        ("Élan_", False),
    ]


def test_choices_of_many_keys_are_those_used_last_and_the_chosen_one(
    shelf: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queries, "CHOICES", 1)
    chosen = db.session.query(ApiKey).filter_by(name="Élan_").one().id
    for key_id, names in ((None, ["alpha 50%"]), (chosen, ["alpha 50%", "Élan_"])):
        found, more = key_queries.choices(db.session(), shelf.id, key_id)
        assert [key.name for key in found] == names
        assert more
    monkeypatch.setattr(key_queries, "CHOICES", 6)
    assert key_queries.choices(db.session(), shelf.id)[1] is False


def test_what_the_list_says_beside_its_rows(shelf: Organization) -> None:
    assert key_queries.expiring(db.session(), shelf.id) == 1
    assert key_queries.any_ever(db.session(), shelf.id)
    empty = factories.organization()
    assert key_queries.expiring(db.session(), empty.id) == 0
    assert not key_queries.any_ever(db.session(), empty.id)


def test_names_lists_every_key_there_ever_was(shelf: Organization) -> None:
    assert [key.name for key in key_queries.list_all(db.session(), shelf.id)] == [
        "alpha 50%",
        "Bravo",
        "Charlie",
        "Delta",
        "Echo",
        "Élan_",
    ]


def test_key_without_a_creator_is_the_command_lines(organization: Organization) -> None:
    assert factories.api_key(organization)[0].created_by_name == "the command line"
