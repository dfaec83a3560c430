"""What a line of text that a person typed may contain, and when two names are the same name."""

import re
import unicodedata

NAME_MAX = 100
TEXT_MAX = 2_000

# Text in every script is welcome, right-to-left too. Refused is what cannot be seen but changes
# what is seen: control characters, line separators, directional overrides (Unicode TR36 §3.5),
# surrogates and code points that are nobody's. Joiners stay, since emoji and Indic scripts need them.
_INVISIBLE = {"Cc", "Zl", "Zp", "Cs", "Cn", "Co"}
_DIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANK = set("\u00ad\u115f\u1160\u180e\u200b\u2060\u2061\u2062\u2063\u2064\u3164\ufeff\uffa0")
_SPACES = re.compile(r"\s+")


def clean_line(value: str, *, most: int = NAME_MAX) -> str:
    """One line of text: NFC, trimmed, runs of white space made one space.

    Raises `ValueError` with a sentence for a person when it is empty, longer than `most`
    characters, or holds characters that cannot be seen.
    """
    text = _SPACES.sub(" ", clean_text(value, most=most, lines=False)).strip()
    if all(unicodedata.category(character)[0] in "CMZ" for character in text):
        raise ValueError("Please fill this in.")
    return text


def clean_text(value: str, *, most: int = TEXT_MAX, lines: bool = True) -> str:
    """Text of at most `most` characters, possibly empty, of several lines when `lines`.

    Raises `ValueError` as `clean_line` does.
    """
    text = unicodedata.normalize("NFC", value.replace("\r\n", "\n")).strip()
    if len(text) > most:  # only now: normalizing can make a text longer
        raise ValueError(f"Please use at most {most:,} characters.")
    for character in text:
        if lines and character in "\n\t":
            continue
        if character in _DIRECTIONAL | _BLANK or unicodedata.category(character) in _INVISIBLE:
            raise ValueError("Please remove the invisible or control characters.")
    return text


def fold(value: str) -> str:
    """The form in which two names are compared: NFKC, case-folded, of 200 characters at most.

    What cannot be seen is left out, so that it makes no difference, and since a database refuses
    some of it. Folding can make a text up to 18 times as long; an index row can't hold that.
    """
    seen = "".join(c for c in value if unicodedata.category(c)[0] != "C")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return folded[:200]


def slug(value: str) -> str:
    """`Riverside Market` -> `riverside-market`; `organization` where nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:60] or "organization"
