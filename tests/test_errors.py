"""Problems: what can go wrong, each with a stable code."""

import pytest

from convene_keys import errors
from convene_keys.errors import FieldError, Invalid, MethodNotAllowed, Problem


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "malformed"),
        (401, "unauthenticated"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (409, "conflict"),
        (413, "too_large"),
        (414, "malformed"),
        (415, "unsupported_media_type"),
        (418, "malformed"),
        (500, "internal"),
        (502, "internal"),
        (503, "unavailable"),
    ],
)
def test_every_status_has_a_problem(status: int, code: str) -> None:
    problem = errors.of_status(status, "what happened")
    assert (problem.status, problem.code, problem.detail) == (status, code, "what happened")
    assert problem.title
    assert Problem.status == 500
    assert errors.Malformed.status == 400


def test_invalid_tells_every_field() -> None:
    problem = Invalid([FieldError("name", "Too long."), FieldError("email", "Taken.")])
    assert problem.detail == "name: Too long. email: Taken."
    assert [error.field for error in problem.errors] == ["name", "email"]


def test_code_can_be_narrower_than_its_kind() -> None:
    assert errors.Forbidden("No.", code="off_limits").code == "off_limits"
    assert errors.Forbidden("No.").code == "forbidden"
    assert MethodNotAllowed("No.", allowed=["GET"]).headers == {"Allow": "GET"}
    assert errors.TooMany("No.", retry_after=3).headers == {"Retry-After": "3"}
