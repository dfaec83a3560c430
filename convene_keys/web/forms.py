"""What every form shares: what the domain found wrong is shown on the field it concerns.

A view that changes something reads the same everywhere:

    with form:
        form.check()
        …change, and return the answer…
    return page(…, status=422, form=form)
"""

from types import TracebackType

from flask import request
from flask_wtf import FlaskForm
from wtforms import StringField
from wtforms.i18n import DummyTranslations

from convene_keys.errors import Invalid

_MESSAGES = {
    "Not a valid choice.": "Please choose one from the list.",
    "Not a valid integer value.": "Please type a whole number.",
    "Not a valid date value.": "Please choose a day.",
}


class _Messages(DummyTranslations):
    """The library's messages in this product's words."""

    def gettext(self, string: str) -> str:
        return _MESSAGES.get(string, string)


class Form(FlaskForm):  # type: ignore[misc]
    """As a context manager it takes an `Invalid` raised in its block, and shows it."""

    class Meta(FlaskForm.Meta):  # type: ignore[misc]
        def get_translations(self, _form: FlaskForm) -> _Messages:
            return _Messages()

        def wrap_formdata(self, form: FlaskForm, formdata: object) -> object:
            """Flask-WTF would take JSON for a form as well, past what the guard looks at."""
            return None if request.is_json else super().wrap_formdata(form, formdata)

    def check(self) -> None:
        """Raises `Invalid` when the fields themselves are not what they should be."""
        if not self.validate():
            raise Invalid([])  # each field has its error already

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> bool:
        """Put the domain's errors on their fields; one without a field of ours is the form's."""
        if not isinstance(error, Invalid):
            return False
        for wrong in error.errors:
            field = self._fields.get(wrong.field)
            if field is None:
                self.form_errors.append(wrong.message)
            else:
                field.errors = [*field.errors, wrong.message]
        return True


class ReasonForm(Form):
    reason = StringField("Reason")
