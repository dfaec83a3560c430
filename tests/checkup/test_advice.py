"""What the check-up says of each kind of finding, and which names it calls vague."""

import pytest

from convene_keys.checkup.advice import MAKERS_MAX, Kind, Urgency, is_vague
from convene_keys.text import fold


@pytest.mark.parametrize(
    "name",
    [
        "Claude on laptop",
        "Till",
        "Newsletter script",
        "مفتاح السوق",
        "市場の会計",
        "Otto’s key",
        "R2D2 x",
    ],
)
def test_telling_name(name: str) -> None:
    assert not is_vague(fold(name))


@pytest.mark.parametrize("name", ["test", "api key 2", "claude", "x1", "Q", "prod-2026"])
def test_name_that_says_nothing_of_who_uses_the_key(name: str) -> None:
    assert is_vague(fold(name))


def test_title_counts_the_keys() -> None:
    title = Kind.IDLE.advice.title
    assert title(1) == "1 key was not used for 90 days"
    assert title(1_234) == "1,234 keys were not used for 90 days"


def test_kinds_are_shown_most_urgent_first() -> None:
    order = list(Urgency)
    places = [order.index(kind.advice.urgency) for kind in Kind]
    assert places == sorted(places)


def test_each_finding_about_keys_offers_what_fixes_it() -> None:
    helpless = [kind for kind in Kind if not (kind.advice.remedy or kind.advice.step)]
    assert helpless == [Kind.MAKERS]


def test_copy_names_the_number_of_makers_that_the_rule_goes_by() -> None:
    assert f"Past {MAKERS_MAX}," in Kind.MAKERS.advice.why
