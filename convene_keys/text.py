"""Text from outside: made clean, compared, and freed of keys. Pure functions, no state."""

import re
import unicodedata

# Wider than a key, so that a key with a typing error or a cut tail stays out of the log as well.
# It ends where another begins: of two keys pasted in one go both are found.
_CHARACTER = r"(?:(?!fm_org_)[0-9A-Za-z])"
_TRACE = re.compile(rf"(fm_org_{_CHARACTER}{{4}}){_CHARACTER}+")


def redact(text: str) -> str:
    """`text` with every key in it cut to its hint."""
    return _TRACE.sub(r"\1…", text) if "fm_org_" in text else text


NAME_MAX = 100
TEXT_MAX = 2_000
EMAIL_MAX = 254  # RFC 5321 §4.5.3.1.3, without the brackets
# Normalizing makes a text shorter, a syllable of Hangul or a Vietnamese letter three times.
_RAW = 4
# Sorting the marks on one letter takes quadratic time, so that a text of nothing else could keep a
# processor busy for seconds. UAX #15 §13 ("Stream-Safe Text Format") finds 30 enough for any script.
MARKS_MAX = 30

# Text in every script is welcome, right-to-left too. Refused is what cannot be seen but changes
# what is seen: control characters, line separators, directional overrides (Unicode TR36 §3.5),
# surrogates and code points that are nobody's. Joiners stay, since emoji and Indic scripts need them.
_INVISIBLE = {"Cc", "Zl", "Zp", "Cs", "Cn", "Co"}
_DIRECTIONAL = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_BLANK = set("\u00ad\u115f\u1160\u180e\u200b\u2060\u2061\u2062\u2063\u2064\u3164\ufeff\uffa0")
_HIDDEN = _DIRECTIONAL | _BLANK
# Beside those that say it of themselves: they become marks when they are normalized.
_MARKS = set("\u0f73\u0f75\u0f81\uff9e\uff9f")
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
    if len(value) <= _RAW * most:
        if _stream_safe(value) != value:
            raise ValueError(f"Please use at most {MARKS_MAX} accents on one letter.")
        value = unicodedata.normalize("NFC", value.replace("\r\n", "\n")).strip()
    if len(value) > most:  # normalizing can make a text longer, too
        raise ValueError(f"Please use at most {most:,} characters.")
    text = value
    for character in text:
        if lines and character in "\n\t":
            continue
        if character in _HIDDEN or unicodedata.category(character) in _INVISIBLE:
            raise ValueError("Please remove the invisible or control characters.")
    return text


def printable(text: str) -> str:
    """`text` without the characters that don't show."""
    if text.isprintable():
        return text
    return "".join(character for character in text if character.isprintable())


def fold(value: str) -> str:
    """The form in which two names are compared: NFKC, case-folded, of 200 characters at most.

    What cannot be seen is left out, so that it makes no difference, and since a database refuses
    some of it. Folding can make a text up to 18 times as long; an index row can't hold that. What
    no name or email can have, more characters or marks, is left out as well.
    """
    seen = "".join(c for c in value[:EMAIL_MAX] if unicodedata.category(c)[0] != "C")
    folded = unicodedata.normalize("NFKC", _stream_safe(seen))
    folded = unicodedata.normalize("NFKC", folded.casefold())
    return folded[:200]


def slug(value: str) -> str:
    """`Riverside Market`, a clean line, -> `riverside-market`; `organization` where nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", value).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")[:60] or "organization"


def _stream_safe(text: str) -> str:
    """`text` with no more than `MARKS_MAX` combining marks in a row."""
    if text.isascii():
        return text
    kept, marks = [], 0
    for character in text:
        is_mark = unicodedata.combining(character) or character in _MARKS
        marks = marks + 1 if is_mark else 0
        if marks <= MARKS_MAX:
            kept.append(character)
    return "".join(kept)
