"""The key's format: mint, checksum, digest, compare. Pure functions, no state.

A key is `fm_org_`, 32 characters from a CSPRNG (190 bits) and 6 base62 digits of their CRC32.
190 random bits cannot be guessed, so a fast keyed hash is the right way to store it; slow hashes
are for passwords (OWASP Password Storage Cheat Sheet, "Peppering").
"""

import hmac
import re
import secrets
import string
import zlib
from collections.abc import Callable

PREFIX = "fm_org_"
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
BODY_LENGTH, CHECKSUM_LENGTH, HINT_LENGTH = 32, 6, 4
PATTERN = re.compile(r"fm_org_[0-9A-Za-z]{38}")
MISPLACED = (  # what to tell whoever sent one in an address or a form
    "An API key belongs in the Authorization header only. This one has been seen where it may be "
    "kept: please revoke it and make a new one."
)


def checksum(body: str) -> str:
    """Six base62 digits of the CRC32 of `body`, left-padded with `0`."""
    number, digits = zlib.crc32(body.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits.rjust(CHECKSUM_LENGTH, "0")


def mint(choose: Callable[[str], str] = secrets.choice) -> str:
    """A new key. `choose` picks one character of a string; a test may inject its own."""
    body = "".join(choose(ALPHABET) for _ in range(BODY_LENGTH))
    return PREFIX + body + checksum(body)


def is_well_formed(token: str) -> bool:
    """Whether `token` has the form and checksum of a key. Says nothing about its being real."""
    if not PATTERN.fullmatch(token):
        return False
    body = token[len(PREFIX) : -CHECKSUM_LENGTH]
    return hmac.compare_digest(checksum(body), token[-CHECKSUM_LENGTH:])


def hint(token: str) -> str:
    """What may be shown of a key for good: `fm_org_` and its next four characters."""
    return token[: len(PREFIX) + HINT_LENGTH]


def digest(token: str, pepper: str) -> bytes:
    """What is stored of a key: 32 bytes of HMAC-SHA256 under the pepper."""
    return hmac.new(pepper.encode(), token.encode(), "sha256").digest()
