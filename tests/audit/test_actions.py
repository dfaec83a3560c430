"""The audit vocabulary: every action is `subject.verb` and has both forms of its sentence."""

import re

import pytest

from convene_keys.audit.actions import Action
from convene_keys.models import ActorKind, Outcome

EVERY = pytest.mark.parametrize("action", list(Action), ids=str)


@EVERY
def test_action_is_subject_dot_verb_and_fits_its_column(action: Action) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*\.[a-z]+(_[a-z]+)*", action.value)
    assert len(action.value) <= 64


@EVERY
def test_action_has_both_forms_of_its_sentence(action: Action) -> None:
    for text in (action.done, action.attempt):
        assert re.match(r"[a-z]", text), "it goes on after a name"
        assert not text.endswith((".", " "))
        assert set(re.findall(r"{(\w*)}", text)) <= {"target"}
        assert text.count("{target}") <= 1


@EVERY
def test_sentence_tells_how_it_ended(action: Action) -> None:
    assert action.sentence(Outcome.OK) == action.done
    for outcome in (Outcome.DENIED, Outcome.FAILED):
        if action in (Action.KEY_REFUSED, Action.MEMBER_SIGN_IN_FAILED):
            assert action.sentence(outcome) == action.done
        else:
            assert action.sentence(outcome) == f"tried to {action.attempt}"


def test_label_is_a_sentence_without_names() -> None:
    assert Action.BOOKING_APPROVED.label == "Approved a booking"
    assert Action.APPLICATION_UPDATED.label == "Updated an application"
    assert Action.MARKET_DATE_VIEWED.label == "Looked at a market date"
    assert Action.KEY_REVOKED.label == "Revoked a key"
    labels = {action.label for action in Action}
    assert len(labels) == len(Action), "two actions in a list look the same"
    assert not any("{" in label for label in labels)


def test_actions_are_found_by_their_value_and_are_strings() -> None:
    assert Action("booking.approved") is Action.BOOKING_APPROVED
    assert Action.BOOKING_APPROVED == "booking.approved"
    assert len({action.value for action in Action}) == len(Action)
    with pytest.raises(ValueError, match="is not a valid Action"):
        Action("booking.eaten")


def test_contract_actions_are_there() -> None:
    named = (
        "key.created key.renamed key.revoked key.expired key.refused booking.listed "
        "booking.approved application.updated member.signed_in member.sign_in_failed "
        "member.added member.disabled settings.billing_changed"
    )
    assert set(named.split()) <= {action.value for action in Action}
    assert {"key", "member", "system"} == {kind.value for kind in ActorKind}
    assert {"ok", "denied", "failed"} == {outcome.value for outcome in Outcome}
