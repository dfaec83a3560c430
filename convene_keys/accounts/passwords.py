"""Passwords: which are good enough, how they are kept, whether one fits."""

import base64
import hashlib
import hmac
import unicodedata
from collections.abc import Iterable, Sequence

import bcrypt

from convene_keys.config import pepper_id

# NIST SP 800-63B-4 §3.1.1.2: at least 15 characters where the password is the only factor, no
# composition rules, and a check against passwords that are known or easily guessed.
LENGTH_MIN, LENGTH_MAX = 15, 256
GUESSES_MIN = 10**8  # zxcvbn's score 3: "safely unguessable"
# zxcvbn's time grows with the square of the length and, for characters that stand for several
# letters, faster: 0.3 s for 100 of them. What a guesser finds hard this far stays hard.
GUESSED_MAX = 24
# One character for each letter that is written in several ways, so that there is little to try.
_ONE_OF_ALIKE = str.maketrans("@{[<!|$+", "4(((1157")
REST_MIN = 8  # characters beside the words that a guesser would try first
COST = 12

_PRODUCT_WORDS = ("convene", "keys", "market", "farmers", "vendor", "booking", "apikey")


def weakness(password: str, words: Iterable[str] = ()) -> str | None:
    """What is wrong with a new password, in plain words; None when it is good enough.

    `words` are those that a guesser would try first, as clean lines: the organization's, the
    person's. Takes up to 1 ms.
    """
    if len(password) < LENGTH_MIN:
        return f"Please use at least {LENGTH_MIN} characters. A few unrelated words work well."
    if len(password) > LENGTH_MAX:
        return f"Please use at most {LENGTH_MAX} characters."
    if "\0" in password:
        return "Please remove the invisible or control characters."
    from zxcvbn_rs_py import zxcvbn  # its word lists take 10 ms and memory: not in each process

    normal = _normal(password)
    known = {part for word in words for part in [word, *word.replace("@", " ").split()]}
    known.update(_PRODUCT_WORDS)
    guessed = normal.translate(_ONE_OF_ALIKE)[:GUESSED_MAX]
    guesses = zxcvbn(guessed, user_inputs=sorted(known)).guesses
    rest = normal.casefold()
    for word in sorted(known, key=len, reverse=True):
        if len(word) >= 4:  # shorter ones are part of any text
            rest = rest.replace(_normal(word).casefold(), "")
    if guesses < GUESSES_MIN or len(rest.strip()) < REST_MIN:
        return "This password is easy to guess. A few unrelated words work well."
    return None


def hash_password(password: str, peppers: Sequence[str]) -> str:
    """`pepper-id$bcrypt`. The pepper is first in `peppers`; 240 ms at the full cost."""
    hashed = bcrypt.hashpw(_digest(password, peppers[0]), bcrypt.gensalt(COST))
    return f"{pepper_id(peppers[0])}${hashed.decode()}"


def fits(password: str, stored: str | None, peppers: Sequence[str]) -> bool:
    """Whether `password` is the one behind `stored`. Takes as long when there is none."""
    name, _, hashed = (stored or "").partition("$")
    pepper = next((p for p in peppers if pepper_id(p) == name), peppers[0])
    try:
        return bcrypt.checkpw(_digest(password, pepper), hashed.encode())
    except ValueError:  # no hash, or one that is damaged
        bcrypt.hashpw(b"", bcrypt.gensalt(COST))
        return False


def is_outdated(stored: str, peppers: Sequence[str]) -> bool:
    """Whether `stored` was made under an older pepper or at another cost."""
    return not stored.startswith(f"{pepper_id(peppers[0])}$$2b${COST:02}$")


def _normal(password: str) -> str:
    """What is longer than any password counts as none, before it costs anything."""
    if len(password) > LENGTH_MAX:
        return ""
    return unicodedata.normalize("NFKC", password)


def _digest(password: str, pepper: str) -> bytes:
    """64 bytes: bcrypt refuses more than 72 (OWASP Password Storage Cheat Sheet, "bcrypt")."""
    text = _normal(password).encode("utf-8", "surrogatepass")
    return base64.b64encode(hmac.digest(pepper.encode(), text, hashlib.sha384))
