"""What every form shares: what the domain found wrong is shown on the field it concerns."""

from typing import Any

from flask import request
from flask_wtf import FlaskForm
from wtforms.i18n import DummyTranslations

from convene_keys.errors import Invalid

_PLAIN = {
    "Not a valid choice.": "Please choose one from the list.",
    "Not a valid integer value.": "Please type a whole number.",
    "Not a valid date value.": "Please choose a day.",
}


class _PlainWords(DummyTranslations):
    """The library's messages in this product's words."""

    def gettext(self, string: str) -> str:
        return _PLAIN.get(string, string)


class Form(FlaskForm):  # type: ignore[misc]
    class Meta(FlaskForm.Meta):  # type: ignore[misc]
        def get_translations(self, _form: FlaskForm) -> _PlainWords:
            return _PlainWords()

        def wrap_formdata(self, form: FlaskForm, formdata: Any) -> Any:
            """Flask-WTF would take JSON for a form as well, past what the guard looks at."""
            return None if request.is_json else super().wrap_formdata(form, formdata)

    def show(self, invalid: Invalid) -> None:
        """Put the domain's errors on their fields; one without a field of ours is the form's."""
        for error in invalid.errors:
            field = self._fields.get(error.field)
            if field is None:
                self.form_errors.append(error.message)
            else:
                field.errors = [*field.errors, error.message]
