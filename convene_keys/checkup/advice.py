"""What the check-up may find, in plain words: why it matters and what fixes it.

The copy is in `advice.toml`; `findings` has a rule for each kind.
"""

import re
import tomllib
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel

# More people than can agree by word of mouth which keys there are.
MAKERS_MAX = 5


class Urgency(StrEnum):
    NOW = "Now"
    SOON = "Soon"
    KNOW = "Good to know"


class Remedy(StrEnum):
    """What one confirmation does to all the keys of a finding; the value is its button's words."""

    REVOKE = "Revoke"
    NARROW = "Make read-only"
    END = "Set an end date"

    @property
    def done(self) -> str:
        return _DONE[self]


_DONE = {
    Remedy.REVOKE: "revoked",
    Remedy.NARROW: "made read-only",
    Remedy.END: "given an end date",
}


class Step(StrEnum):
    ROTATE = "Rotate"
    RENAME = "Rename"


class Advice(BaseModel, frozen=True):
    """What is said of a kind of finding.

    `habit` keeps it away; `one` and `many` are its title; `about` says what the moment beside each
    key is. `remedy` serves all keys at once, `step` is a page to open for each.
    """

    urgency: Urgency
    habit: str
    one: str
    many: str
    why: str
    about: str
    remedy: Remedy | None = None
    step: Step | None = None

    def title(self, count: int) -> str:
        return self.one if count == 1 else self.many.format(n=f"{count:,}")


class Kind(StrEnum):
    """What may be found, in the order in which it is shown. The value is its address."""

    SHARED = "shared"
    CONTRADICTED = "contradicted"
    TEAM_CHANGED = "team-changed"
    MAKER_GONE = "maker-gone"
    DUE = "due"
    DUE_SOON = "due-soon"
    IDLE = "idle"
    UNUSED = "unused"
    ONLY_READS = "only-reads"
    VAGUE = "vague"
    ENDLESS = "endless"
    MAKERS = "makers"

    @property
    def advice(self) -> Advice:
        return _ADVICE[self]


def is_vague(folded: str) -> bool:
    """Whether a folded name says nothing of who uses the key: `test`, `api key 2`, `claude`, `x1`."""
    return len(folded) <= 2 or all(word in _EMPTY_WORDS for word in _WORD.findall(folded))


_COPY = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_EMPTY_WORDS = frozenset(_COPY["empty_words"].split())
_WORD = re.compile(r"[^\W\d_]+")
_ADVICE = {kind: Advice.model_validate(_COPY[kind]) for kind in Kind}
ADVICE = tuple(dict.fromkeys(advice.habit for advice in _ADVICE.values()))
