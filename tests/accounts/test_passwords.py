"""Passwords: strength, hashing, pepper rotation, constant work."""

import bcrypt
import pytest

from convene_keys.accounts import passwords
from convene_keys.config import pepper_id

PEPPERS = ["newest pepper", "older pepper"]
GOOD = "velvet tractor umbrella ninety"


def test_hash_fits_its_password_only() -> None:
    stored = passwords.hash_password(GOOD, PEPPERS)
    assert stored.startswith(pepper_id("newest pepper") + "$$2b$04$")
    assert len(stored) <= 120, "the column's length"
    assert passwords.fits(GOOD, stored, PEPPERS)
    assert not passwords.fits(GOOD + " ", stored, PEPPERS)
    assert passwords.hash_password(GOOD, PEPPERS) != stored


def test_full_cost_is_twelve(monkeypatch: pytest.MonkeyPatch) -> None:
    costs: list[int] = []
    monkeypatch.setattr(passwords, "COST", 12)
    monkeypatch.setattr(
        bcrypt, "gensalt", lambda cost: costs.append(cost) or b"$2b$04$" + b"." * 22
    )
    passwords.hash_password(GOOD, PEPPERS)
    assert costs == [12]


def test_every_byte_beyond_72_counts() -> None:
    long = "é" * 200
    stored = passwords.hash_password(long, PEPPERS)
    assert passwords.fits(long, stored, PEPPERS)
    assert not passwords.fits("é" * 199 + "e", stored, PEPPERS)


@pytest.mark.parametrize("odd", ["\ud800 lone surrogate", "null \0 byte", "", "𝔳𝔢𝔩𝔳𝔢𝔱"])
def test_any_text_can_be_hashed(odd: str) -> None:
    assert passwords.fits(odd, passwords.hash_password(odd, PEPPERS), PEPPERS)


def test_text_after_a_null_byte_counts() -> None:
    stored = passwords.hash_password("abc\0def", PEPPERS)
    assert not passwords.fits("abc\0xyz", stored, PEPPERS)


def test_same_password_from_another_keyboard_fits() -> None:
    stored = passwords.hash_password("cafe\u0301 tractor umbrella", PEPPERS)
    assert passwords.fits("café tractor umbrella", stored, PEPPERS)
    assert passwords.fits("ｃａｆé tractor umbrella", stored, PEPPERS)


def test_hash_under_an_older_pepper_fits_and_is_outdated() -> None:
    stored = passwords.hash_password(GOOD, PEPPERS[1:])
    assert passwords.fits(GOOD, stored, PEPPERS)
    assert passwords.is_outdated(stored, PEPPERS)
    assert not passwords.is_outdated(stored, PEPPERS[1:])
    assert not passwords.fits(GOOD, stored, PEPPERS[:1])


def test_hash_of_another_cost_is_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = passwords.hash_password(GOOD, PEPPERS)
    assert not passwords.is_outdated(stored, PEPPERS)
    monkeypatch.setattr(passwords, "COST", 5)
    assert passwords.is_outdated(stored, PEPPERS)


DAMAGED = [
    None,
    "",
    "nonsense",
    "12345678$",
    "12345678$$2b$04$short",
    "12345678$$2b$99$" + "." * 53,
    "12345678$$2q$04$" + "." * 53,
    "12345678$$2b$04$" + "é" * 53,
    "12345678$$2b$04$" + "\0" * 53,
]


@pytest.mark.parametrize("stored", DAMAGED)
def test_damaged_or_missing_hash_fits_nothing(stored: str | None) -> None:
    assert passwords.fits(GOOD, stored, PEPPERS) is False


@pytest.mark.parametrize("stored", [*DAMAGED[:4], "good"])
def test_work_is_the_same_without_a_hash(
    stored: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stored == "good":
        stored = passwords.hash_password("another one entirely", PEPPERS)
    hashed: list[str] = []
    check, make = bcrypt.checkpw, bcrypt.hashpw

    def checkpw(password: bytes, salt: bytes) -> bool:
        fitting = check(password, salt)  # raises before any work when the hash is damaged
        hashed.append("check")
        return fitting

    def hashpw(password: bytes, salt: bytes) -> bytes:
        hashed.append("hash")
        assert salt.startswith(b"$2b$04$")
        return make(password, salt)

    monkeypatch.setattr(bcrypt, "checkpw", checkpw)
    monkeypatch.setattr(bcrypt, "hashpw", hashpw)
    assert not passwords.fits(GOOD, stored, PEPPERS)
    assert len(hashed) == 1


@pytest.mark.parametrize(
    ("password", "reason"),
    [
        ("", "at least 15"),
        ("fourteen chars", "at least 15"),
        ("x" * 257, "at most 256"),
        ("velvet tractor\0umbrella", "invisible or control"),
        ("passwordpassword", "easy to guess"),
        ("aaaaaaaaaaaaaaaaaaaa", "easy to guess"),
        ("123456789012345678", "easy to guess"),
        ("convenekeysmarket", "easy to guess"),
        ("qwertyuiopasdfgh", "easy to guess"),
    ],
)
def test_weak_password_is_refused_with_a_reason(password: str, reason: str) -> None:
    assert reason in (passwords.weakness(password) or "")


def test_words_of_the_organization_and_person_are_easy_to_guess() -> None:
    password = "Zwartberghoeve Okonkwo"
    assert passwords.weakness(password) is None
    words = ["Zwartberghoeve", "Maya Okonkwo", "okonkwo@zwartberghoeve.example"]
    assert "easy to guess" in (passwords.weakness(password, words) or "")


def test_good_password_is_good_whatever_its_composition() -> None:
    assert passwords.weakness(GOOD, ["Riverside Market", "Maya", ""]) is None
    assert passwords.weakness("mañana tractor 雨傘 ninety") is None
    assert passwords.weakness((GOOD + " ") * 8) is None
