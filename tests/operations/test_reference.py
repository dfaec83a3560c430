"""The examples of the reference are what the API really answers, and its codes are all there are."""

import json
import re
from pathlib import Path

import pytest
from flask import Flask

from convene_keys import errors
from convene_keys.operations import reference
from convene_keys.operations.table import OPERATIONS
from tests.reference import FILE, answers

pytestmark = pytest.mark.on_sqlite

# Codes that only pages have: no program meets them.
OF_PAGES = {"stale_form", "invalid_date", "too_many"}
# Codes of classes that are always raised with one that says more.
ALWAYS_CLOSER = {"unauthenticated", "forbidden"}


def test_examples_are_what_the_api_answers_on_the_sample_data(app: Flask) -> None:
    written = FILE.read_text(encoding="utf-8")
    assert json.dumps(answers(app), indent=1, ensure_ascii=False) + "\n" == written, (
        "the API answers otherwise now: run `make reference`, and look at the difference"
    )


def test_each_operation_has_an_example_that_did_what_it_says() -> None:
    for operation in OPERATIONS:
        described = reference.describe(operation)
        given, answer = described.given, described.answer
        assert set(answer) == set(operation.output.model_fields)
        named = {one.name for one in described.inputs}
        assert set(given) <= named
        if "data" in answer:
            assert answer["data"], "an empty list shows nothing"


def test_every_code_that_a_program_can_meet_is_explained() -> None:
    source = "\n".join(
        path.read_text() for path in Path(reference.__file__).parent.parent.rglob("*.py")
    )
    raised = set(re.findall(r"\bcode=\"([a-z_]+)\"", source))
    classes = {
        kind.code: kind.status
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.Problem)
    }
    explained = {code.code: code.status for code in reference.CODES}
    assert len(explained) == len(reference.CODES)
    assert explained.keys() == (raised | classes.keys()) - OF_PAGES - ALWAYS_CLOSER
    assert {c: s for c, s in classes.items() if c in explained}.items() <= explained.items()


def test_every_status_has_a_real_problem_document() -> None:
    found = reference.problems()
    statuses = {s for operation in OPERATIONS for s in reference.describe(operation).refusals}
    assert statuses <= {int(status) for status in found}
    explained = {(code.status, code.code) for code in reference.CODES}
    for status, problem in found.items():
        assert problem["status"] == int(status)
        assert (problem["status"], problem["code"]) in explained
