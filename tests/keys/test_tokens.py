"""The key's format (contract §4)."""

import hashlib
import hmac
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convene_keys import config
from convene_keys import text as text_
from convene_keys.keys import tokens

BODY = "0123456789ABCDEFGHIJKLMNOPQRSTUV"
KEY = tokens.PREFIX + BODY + tokens.checksum(BODY)
bodies = st.text(tokens.ALPHABET, min_size=32, max_size=32)


def test_checksum_fits_the_published_vector() -> None:
    assert tokens.checksum("zQWBuTSOoRi4A9spHcVY5ncnsDkxkJ") == "0mLq17"


def test_checksum_is_padded_with_zeros() -> None:
    assert tokens.checksum("") == "000000"


def test_mint_makes_a_well_formed_key() -> None:
    token = tokens.mint()
    assert tokens.PATTERN.fullmatch(token)
    assert tokens.is_well_formed(token)
    assert tokens.mint() != token


def test_mint_takes_every_character_from_the_injected_choice() -> None:
    turn = itertools.cycle(range(62))
    assert tokens.mint(lambda alphabet: alphabet[next(turn)]) == (
        "fm_org_0123456789ABCDEFGHIJKLMNOPQRSTUV" + tokens.checksum(BODY)
    )


@given(bodies)
def test_every_body_with_its_checksum_is_well_formed(body: str) -> None:
    assert tokens.is_well_formed(tokens.PREFIX + body + tokens.checksum(body))


@given(bodies, st.integers(0, 31), st.sampled_from(tokens.ALPHABET))
def test_one_wrong_character_breaks_the_checksum(body: str, place: int, other: str) -> None:
    wrong = body[:place] + other + body[place + 1 :]
    token = tokens.PREFIX + wrong + tokens.checksum(body)
    assert tokens.is_well_formed(token) is (wrong == body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fm_org_",
        KEY[:-1],
        KEY + "0",
        KEY + "\n",
        " " + KEY,
        KEY.replace("fm_org_", "fm_ORG_"),
        KEY[:-1] + "é",
        KEY[:10] + "\u0661" + KEY[11:],
    ],
)
def test_anything_else_is_not_well_formed(text: str) -> None:
    assert not tokens.is_well_formed(text)


def test_hint_is_the_prefix_and_four_characters() -> None:
    assert tokens.hint(KEY) == "fm_org_0123"


def test_digest_is_hmac_sha256_under_the_pepper() -> None:
    expected = hmac.new(b"pepper", KEY.encode(), hashlib.sha256).digest()
    assert tokens.digest(KEY, "pepper") == expected
    assert tokens.digest(KEY, "other") != expected


def test_pepper_id_names_a_pepper_without_telling_it() -> None:
    assert len(config.pepper_id("pepper")) == 8
    assert config.pepper_id("pepper") != config.pepper_id("other")
    assert "pepper" not in config.pepper_id("pepper")


@given(st.text(), bodies, st.text())
def test_redact_cuts_a_key_out_of_any_text(before: str, body: str, after: str) -> None:
    token = tokens.PREFIX + body + tokens.checksum(body)
    redacted = text_.redact(before + token + after)
    assert token not in redacted
    assert tokens.PREFIX + body[:5] not in redacted
    assert tokens.hint(token) + "…" in redacted


@given(st.text(st.characters(exclude_characters="_")))
def test_redact_leaves_other_text_alone(text: str) -> None:
    assert text_.redact(text) == text


def test_redact_cuts_keys_that_stand_side_by_side() -> None:
    assert text_.redact(KEY + KEY) == "fm_org_0123…fm_org_0123…"
    assert text_.redact("fm_org_ABC" + KEY) == "fm_org_ABCfm_org_0123…"


def test_redact_cuts_a_mistyped_or_shortened_key_too() -> None:
    assert text_.redact(f"{KEY[:20]} {KEY}x") == "fm_org_0123… fm_org_0123…"
    assert text_.redact("fm_org_0123") == "fm_org_0123"
