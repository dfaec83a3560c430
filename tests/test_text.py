"""What a typed line may contain, and when two names are the same."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convene_keys.text import NAME_MAX, clean_line, clean_text, fold, slug


def test_clean_line_trims_and_collapses_white_space() -> None:
    assert clean_line("  Claude\u00a0 on   laptop ") == "Claude on laptop"


def test_clean_line_composes_characters() -> None:
    assert clean_line("Cafe\u0301") == "Café"


@pytest.mark.parametrize("blank", ["", "   ", "\n", "\u200d", "\u0301", "\u200d \u200c"])
def test_clean_line_refuses_what_shows_nothing(blank: str) -> None:
    with pytest.raises(ValueError, match="fill this in"):
        clean_line(blank)


@pytest.mark.parametrize(
    "text",
    [
        "شوق المزارعين",
        "שוק האיכרים",
        "नमस्ते क्\u200dष",
        "می\u200cخواهم",
        "市場",
        "👩\u200d🌾 Farm 🏴",
        "Ana & Co. (№ 7)",
        "=1+1",
    ],
)
def test_clean_line_welcomes_every_script(text: str) -> None:
    assert clean_line(text) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize(
    "code",
    [0x00, 0x07, 0x09, 0x0A, 0x1B, 0x7F, 0x85, 0xAD, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029]
    + [0x202A, 0x202E, 0x2060, 0x2066, 0x2069, 0x061C, 0x3164, 0xFEFF, 0xD800, 0xDFFF, 0xE000]
    + [0xFFFF, 0x0378],
)
def test_clean_line_refuses_what_cannot_be_seen(code: int) -> None:
    with pytest.raises(ValueError, match="invisible or control"):
        clean_line(f"Market{chr(code)}day")


def test_clean_line_counts_characters_after_normalizing() -> None:
    assert clean_line("a" * NAME_MAX) == "a" * NAME_MAX
    assert clean_line("e\u0301" * NAME_MAX) == "é" * NAME_MAX
    for long in ("a" * (NAME_MAX + 1), "\u0958" * NAME_MAX, "x" * 10_000):
        with pytest.raises(ValueError, match="at most 100 characters"):
            clean_line(long)


def test_clean_text_keeps_lines_and_tabs() -> None:
    assert clean_text("one\r\ntwo\tthree\n") == "one\ntwo\tthree"
    assert clean_text("") == ""
    with pytest.raises(ValueError, match="invisible or control"):
        clean_text("one\ntwo", lines=False)
    with pytest.raises(ValueError, match="at most 2,000 characters"):
        clean_text("x" * 2_001)


@given(st.text())
def test_clean_line_gives_a_clean_line_or_refuses(text: str) -> None:
    try:
        clean = clean_line(text)
    except ValueError:
        return
    assert 0 < len(clean) <= NAME_MAX
    assert clean == clean_line(clean)
    assert "\0" not in clean
    clean.encode()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("CLAUDE", "claude"),
        ("Straße", "STRASSE"),
        ("Ｃｌａｕｄｅ", "claude"),
        ("Café", "CAFE\u0301"),
        ("Cl\u200daude", "claude"),
        ("clau\0de", "claude"),
    ],
)
def test_fold_makes_the_same_name_the_same(one: str, other: str) -> None:
    assert fold(one) == fold(other)


@given(st.text())
def test_fold_gives_what_a_database_can_keep(text: str) -> None:
    folded = fold(text)
    assert len(folded) <= 200
    assert "\0" not in folded
    folded.encode()


def test_fold_keeps_a_long_expansion_within_200_characters() -> None:
    assert len(fold("\ufdfa" * 100)) == 200


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Riverside Market", "riverside-market"),
        ("  Östliche Höfe! ", "ostliche-hofe"),
        ("市場", "organization"),
        ("a" * 100, "a" * 60),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected
