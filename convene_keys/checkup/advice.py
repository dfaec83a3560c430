"""The security habits in plain words: what the check-up may find, why it matters, what mends it.

In this one place, as the sentences of the audit log are in `events`; `checkup` looks for them.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

# More people than can agree by word of mouth which keys there are.
MAKERS_MAX = 5
# What tells nothing of who uses a key, alone or together.
_EMPTY_WORDS = """
a access admin ai anthropic api apikey app asdf asdfgh bar blah bot chat chatgpt claude convene copy
default demo dev developer fm foo gpt key keys live main mcp my name new no old one openai org other
prod production qwerty qwertz script secret temp test tester testing the tmp todo token tool unnamed
untitled xx xxx
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_WORD = re.compile(r"[^\W\d_]+")


class Urgency(StrEnum):
    NOW = "Now"
    SOON = "Soon"
    KNOW = "Good to know"


class Remedy(StrEnum):
    """What one confirmation does to all the keys of a finding; the value is its button's words."""

    done: str

    def __new__(cls, value: str, done: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.done = done
        return member

    REVOKE = "Revoke", "revoked"
    NARROW = "Make read-only", "made read-only"
    END = "Set an end date", "given an end date"


class Step(StrEnum):
    ROTATE = "Rotate"
    RENAME = "Rename"


@dataclass(frozen=True, kw_only=True)
class Advice:
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

    advice: Advice

    def __new__(cls, value: str, advice: Advice | None = None) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        if advice is not None:
            member.advice = advice
        return member

    SHARED = (
        "shared",
        Advice(
            urgency=Urgency.NOW,
            habit="one key for each device",
            one="1 key is used in several places at once",
            many="{n} keys are used in several places at once",
            why=(
                "A key that two devices share can’t be stopped for one of them, and one of them may be a "
                "thief’s. Look at what it did. If all of it is yours, create another key for the other "
                "device, then rotate this one."
            ),
            about="last seen so",
            step=Step.ROTATE,
        ),
    )
    CONTRADICTED = (
        "contradicted",
        Advice(
            urgency=Urgency.NOW,
            habit="each key only in its tool",
            one="1 key is used by another tool than it was made for",
            many="{n} keys are used by another tool than they were made for",
            why=(
                "A key found in another tool may have been copied there. Unless you know why, revoke it and "
                "create one for the tool that needs it."
            ),
            about="last used",
            remedy=Remedy.REVOKE,
        ),
    )
    TEAM_CHANGED = (
        "team-changed",
        Advice(
            urgency=Urgency.NOW,
            habit="new keys after a change in the team",
            one="1 key is older than a change in the team",
            many="{n} keys are older than a change in the team",
            why="Whoever left may have seen or copied it. Rotate it: what they know is worth nothing then.",
            about="made",
            step=Step.ROTATE,
        ),
    )
    MAKER_GONE = (
        "maker-gone",
        Advice(
            urgency=Urgency.NOW,
            habit="no keys of people who left",
            one="1 key was made by someone who left or lost their role",
            many="{n} keys were made by someone who left or lost their role",
            why=(
                "It works no longer: a key works for as long as who made it may make keys. Revoke it, so "
                "that nobody revives it by mistake, or rotate it, and the new one is yours."
            ),
            about="made",
            remedy=Remedy.REVOKE,
            step=Step.ROTATE,
        ),
    )
    DUE = (
        "due",
        Advice(
            urgency=Urgency.NOW,
            habit="keys replaced in time",
            one="1 key is due to be replaced",
            many="{n} keys are due to be replaced",
            why=(
                "The longer a key lives, the more backups, logs and old devices it may lie in. Rotating it "
                "makes a new one, and the old one goes on until you have put the new one in."
            ),
            about="made",
            step=Step.ROTATE,
        ),
    )
    DUE_SOON = (
        "due-soon",
        Advice(
            urgency=Urgency.SOON,
            habit="keys replaced in time",
            one="1 key is soon due to be replaced",
            many="{n} keys are soon due to be replaced",
            why="Half of its time is over. Rotate it when it suits you, rather than when it has to be.",
            about="made",
            step=Step.ROTATE,
        ),
    )
    IDLE = (
        "idle",
        Advice(
            urgency=Urgency.SOON,
            habit="no keys that nobody uses",
            one="1 key was not used for 90 days",
            many="{n} keys were not used for 90 days",
            why=(
                "Nobody would miss it, and nobody would notice a thief who has it. Revoke it: a new one "
                "takes a minute."
            ),
            about="last used",
            remedy=Remedy.REVOKE,
        ),
    )
    UNUSED = (
        "unused",
        Advice(
            urgency=Urgency.SOON,
            habit="no keys that were never used",
            one="1 key was never used",
            many="{n} keys were never used",
            why=(
                "It was made two weeks ago or longer and never put to work, so it lies about somewhere. "
                "Revoke it, and make one when it is needed."
            ),
            about="made",
            remedy=Remedy.REVOKE,
        ),
    )
    ONLY_READS = (
        "only-reads",
        Advice(
            urgency=Urgency.SOON,
            habit="no more rights than needed",
            one="1 key may change things but only ever reads",
            many="{n} keys may change things but only ever read",
            why=(
                "In the wrong hands it could approve or cancel bookings, which its tool hasn’t done for 90 "
                "days. Made read-only, it goes on reading as before."
            ),
            about="in use since",
            remedy=Remedy.NARROW,
        ),
    )
    VAGUE = (
        "vague",
        Advice(
            urgency=Urgency.KNOW,
            habit="names that say who uses a key, and where",
            one="1 key’s name says little",
            many="{n} keys’ names say little",
            why=(
                "On the day you must stop one key in a hurry, its name has to tell which it is. A good one "
                "says who uses it and where, such as “Claude on Maya’s laptop”."
            ),
            about="made",
            step=Step.RENAME,
        ),
    )
    ENDLESS = (
        "endless",
        Advice(
            urgency=Urgency.KNOW,
            habit="an end date for each key",
            one="1 key has no end date",
            many="{n} keys have no end date",
            why=(
                "A key that is forgotten works for ever. With an end date it stops by itself, and you are "
                "told before it does."
            ),
            about="made",
            remedy=Remedy.END,
        ),
    )
    MAKERS = (
        "makers",
        Advice(
            urgency=Urgency.KNOW,
            habit="few people who may make keys",
            one="1 member may create keys",
            many="{n} members may create keys",
            why=(
                f"Past {MAKERS_MAX}, hardly anybody knows which keys there are and why. Viewers see all the "
                "keys, too: give the role that makes them to those who need it."
            ),
            about="joined",
        ),
    )


ADVICE = tuple(dict.fromkeys(kind.advice.habit for kind in Kind))


def is_vague(folded: str) -> bool:
    """Whether a folded name says nothing of who uses the key: `test`, `api key 2`, `claude`, `x1`."""
    return len(folded) <= 2 or all(word in _EMPTY for word in _WORD.findall(folded))
