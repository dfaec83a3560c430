"""Reporters' public keys, asked of a real server, and what counts as their signature."""

import base64
import json
import threading
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from convene_keys.leaks import signatures
from convene_keys.leaks.signatures import PublicKeys, is_signed
from tests.conftest import Clock
from tests.reporters import (
    SAMPLE,
    SAMPLE_IDENTIFIER,
    SAMPLE_KEY,
    SAMPLE_SIGNATURE,
    KeyServer,
    Reporter,
    public_key,
)

BODY = b'[{"token":"t","type":"k","url":"","source":"content"}]'
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (FIPS 186-4)


@pytest.fixture
def ours() -> Reporter:
    return Reporter("ours")


@pytest.fixture
def server(ours: Reporter) -> Iterator[KeyServer]:
    with KeyServer(ours) as server:
        yield server


# The signature -----------------------------------------------------------------------------------


def test_githubs_published_sample_is_signed() -> None:
    assert is_signed(SAMPLE, SAMPLE_SIGNATURE, SAMPLE_KEY)
    assert not is_signed(SAMPLE + b"\n", SAMPLE_SIGNATURE, SAMPLE_KEY)


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _der(r: bytes, s: bytes) -> bytes:
    """A signature of two integers, written as they are."""
    parts = b"".join(bytes([2, len(part)]) + part for part in (r, s))
    return bytes([0x30, len(parts)]) + parts


def test_forged_signatures_are_none(ours: Reporter) -> None:
    key, other, wide = ours.public["key"], Reporter("other"), Reporter("wide", ec.SECP384R1())
    good = ours.sign(BODY)
    r, s = (number.to_bytes(33) for number in decode_dss_signature(good))
    zero, order = b"\0", ORDER.to_bytes(33)
    forged: dict[str, tuple[bytes, str, str]] = {
        "another body": (BODY.replace(b'"t"', b'"u"'), _text(good), key),
        "a space more": (BODY + b" ", _text(good), key),
        "no body": (b"", _text(good), key),
        "cut off": (BODY, _text(good[:-1]), key),
        "a byte more": (BODY, _text(good + b"\0"), key),
        "one bit": (BODY, _text(good[:-1] + bytes([good[-1] ^ 1])), key),
        "of another key": (BODY, _text(other.sign(BODY)), key),
        "against another key": (BODY, _text(good), other.public["key"]),
        "raw r and s": (BODY, _text(r[1:] + s[1:]), key),
        "zeros in front": (BODY, _text(_der(b"\0" + r, b"\0" + s)), key),
        "r and s are 0": (BODY, _text(_der(zero, zero)), key),
        "r and s are the order": (BODY, _text(_der(order, order)), key),
        "r is 0": (BODY, _text(_der(zero, s)), key),
        "SHA-1": (BODY, _text(ours.sign(BODY, hashes.SHA1())), key),  # noqa: S303
        "SHA-384": (BODY, _text(ours.sign(BODY, hashes.SHA384())), key),
        "P-384": (BODY, _text(wide.sign(BODY)), wide.public["key"]),
        "not base64": (BODY, "no signature!", key),
        "a space within": (BODY, f"{_text(good)[:20]} {_text(good)[20:]}", key),
        "a line's end": (BODY, f"{_text(good)}\n", key),
        "in hex": (BODY, good.hex(), key),
        "twice": (BODY, f"{_text(good)},{_text(good)}", key),
        "no ASCII": (BODY, "é", key),
        "empty": (BODY, "", key),
        "an empty key": (BODY, _text(good), ""),
        "a broken key": (BODY, _text(good), key.replace("MFkw", "AAAA")),
        "a key that is none": (BODY, _text(good), "-----BEGIN PUBLIC KEY-----"),
    }
    assert [how for how, (body, text, pem) in forged.items() if is_signed(body, text, pem)] == []
    assert is_signed(BODY, _text(good), key)


def test_key_of_another_kind_is_none() -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for private in (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65_537, 2_048),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        pem = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert not is_signed(BODY, _text(b"x" * 70), pem.decode())


# The public keys ---------------------------------------------------------------------------------


def test_key_is_found_and_asked_for_once_an_hour(
    server: KeyServer, ours: Reporter, fake_clock: Clock
) -> None:
    keys = PublicKeys(server.url)
    assert server.asked == 0
    for _ in range(5):
        assert keys.find("ours") == ours.public["key"]
        fake_clock.advance(minutes=10)
    assert server.asked == 1
    fake_clock.advance(minutes=10)
    assert keys.find("ours") == ours.public["key"]
    assert server.asked == 2


def test_unknown_identifier_asks_at_once_but_once_a_minute(
    server: KeyServer, ours: Reporter, fake_clock: Clock
) -> None:
    keys, new = PublicKeys(server.url), Reporter("new")
    assert keys.find("ours")
    for number in range(20):
        assert keys.find(f"guess {number}") is None
    assert server.asked == 1
    fake_clock.advance(seconds=61)
    server.tell(new.public)
    assert keys.find("new") == new.public["key"]
    assert keys.find("ours") is None, "it is not told any more"
    assert server.asked == 2


def test_key_that_is_not_current_is_none(server: KeyServer, ours: Reporter) -> None:
    ours.current = False
    server.tell(ours.public, Reporter("new").public)
    keys = PublicKeys(server.url)
    assert keys.find("ours") is None
    assert keys.find("new")
    assert len(keys) == 1


NONSENSE = (
    b"",
    b"not json",
    b"{}",
    b'{"public_keys": []}',
    b'{"public_keys": [{"key_identifier": "ours"}]}',
    b'{"public_keys": [{"key_identifier": "ours", "key": 1, "is_current": true}]}',
    b'{"public_keys": "ours"}',
    b"[" * 10_000,
    b"\xff" * 100,
    json.dumps({"public_keys": [public_key(str(n), "k") for n in range(101)]}).encode(),
    b" " * (signatures.ANSWER_MAX + 1),
)


def test_last_known_keys_stay_good_while_the_server_fails(
    server: KeyServer,
    ours: Reporter,
    fake_clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signatures, "TIMEOUT", 0.2)
    keys, good = PublicKeys(server.url), server.body
    assert keys.find("ours")

    def asked_in_vain() -> None:
        before = server.asked
        fake_clock.advance(hours=2)
        assert keys.find("ours") == ours.public["key"]
        assert keys.find("ours") == ours.public["key"]
        assert server.asked == before + 1

    for body in NONSENSE:
        server.body = body
        asked_in_vain()
    server.body = good
    for status in (404, 429, 500):
        server.status = status
        asked_in_vain()
    server.status, server.headers, server.pause = 200, {}, 1.0
    asked_in_vain()
    server.stop()
    fake_clock.advance(hours=1_000)
    assert keys.find("ours") == ours.public["key"]
    assert PublicKeys(server.url).find("ours") is None, "after a restart nobody is known"


def test_redirect_is_not_followed(server: KeyServer, fake_clock: Clock) -> None:
    with KeyServer(Reporter("elsewhere")) as other:
        for status in (301, 302, 303, 307, 308):
            server.status, server.headers = status, {"Location": other.url}
            assert PublicKeys(server.url).find("elsewhere") is None
        assert (server.asked, other.asked) == (5, 0)


def test_server_that_never_answered_knows_nobody(server: KeyServer, fake_clock: Clock) -> None:
    server.stop()
    keys = PublicKeys(server.url)
    assert keys.find("ours") is None


def test_clock_that_was_set_back_does_not_stop_the_asking(
    server: KeyServer, fake_clock: Clock
) -> None:
    keys = PublicKeys(server.url)
    keys.find("ours")
    fake_clock.advance(days=-30)
    assert keys.find("ours")
    assert server.asked == 2


def test_known_reporter_does_not_wait_for_a_slow_server(
    server: KeyServer, ours: Reporter, fake_clock: Clock
) -> None:
    keys = PublicKeys(server.url)
    keys.find("ours")
    fake_clock.advance(hours=2)
    asking, go_on = threading.Event(), threading.Event()

    def refresh() -> None:
        asking.set()
        assert go_on.wait(10)

    keys.refresh = refresh  # type: ignore[method-assign, assignment]
    slow = threading.Thread(target=keys.find, args=("ours",))
    slow.start()
    assert asking.wait(10)
    assert keys.find("ours") == ours.public["key"]
    assert slow.is_alive()
    go_on.set()
    slow.join()


def test_sample_identifier_is_taken_from_a_server(server: KeyServer, fake_clock: Clock) -> None:
    server.tell(public_key(SAMPLE_IDENTIFIER, SAMPLE_KEY))
    found = PublicKeys(server.url).find(SAMPLE_IDENTIFIER)
    assert found
    assert is_signed(SAMPLE, SAMPLE_SIGNATURE, found)
