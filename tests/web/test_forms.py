"""What forms share: errors on their fields, our words in place of the library's, and no JSON."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from wtforms import DateField, IntegerField, SelectField, StringField

from convene_keys.errors import FieldError, Invalid, NotFound
from convene_keys.web.forms import Form

pytestmark = pytest.mark.on_sqlite

GOOD = {"name": "Till", "tool": "claude", "months": "6", "ends": "2026-11-24"}


class SampleForm(Form):
    name = StringField("Name")
    tool = SelectField("Tool", choices={"claude": "Claude"})
    months = IntegerField("Months")
    ends = DateField("Ends")


@contextmanager
def posted(app: Flask, **values: str) -> Iterator[SampleForm]:
    """The form as it arrives: a good one, but for `values`."""
    app.config["WTF_CSRF_ENABLED"] = False
    with app.test_request_context(method="POST", data=GOOD | values):
        yield SampleForm()


def test_what_the_domain_found_wrong_is_shown_on_its_field_or_on_the_form(app: Flask) -> None:
    wrong = [FieldError("name", "It is taken."), FieldError("elsewhere", "Not today.")]
    with posted(app) as form:
        with form:
            form.check()
            raise Invalid(wrong)
        assert (form.name.errors, form.form_errors) == (["It is taken."], ["Not today."])


def test_a_field_keeps_its_own_error_beside_the_domains(app: Flask) -> None:
    with posted(app, months="many") as form:
        form.validate()
        with form:
            raise Invalid([FieldError("months", "At most 24.")])
        assert form.errors == {"months": ["Please type a whole number.", "At most 24."]}


def test_nothing_is_changed_by_a_form_whose_fields_are_wrong(app: Flask) -> None:
    changed = []
    for months in ("many", "6"):
        with posted(app, months=months) as form, form:
            form.check()
            changed.append(form.months.data)
    assert changed == [6]


def test_what_is_no_error_of_a_form_is_not_kept_from_the_page(app: Flask) -> None:
    with posted(app) as form:
        with pytest.raises(NotFound), form:
            raise NotFound("There is no such key.")
        assert form.errors == {}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tool", "hammer", "Please choose one from the list."),
        ("months", "six", "Please type a whole number."),
        ("ends", "2026-02-30", "Please choose a day."),
    ],
)
def test_the_librarys_messages_are_in_our_words(
    app: Flask, name: str, value: str, message: str
) -> None:
    with posted(app, **{name: value}) as form:
        assert not form.validate()
        assert form.errors == {name: [message]}


def test_json_is_no_form(app: Flask) -> None:
    app.config["WTF_CSRF_ENABLED"] = False
    with app.test_request_context(method="POST", json=GOOD):
        form = SampleForm()
        assert form.name.data is None
        assert not form.validate()
