"""Powerful actions need the password again when it was last given more than 30 minutes ago."""

from flask_login import current_user
from wtforms import PasswordField

from convene_keys.accounts import sign_in
from convene_keys.errors import FieldError, Invalid
from convene_keys.http.access import origin, settings
from convene_keys.web.forms import Form


class ReauthForm(Form):
    """A form that asks for `current_password` when authentication is not recent."""

    current_password = PasswordField("Your password")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        if current_user.recently_authenticated:
            del self.current_password

    def check(self) -> None:
        """Raises `Invalid` for a wrong field or password, and `TooMany` after too many tries."""
        super().check()
        self.confirm_password()

    def confirm_password(self) -> None:
        """Check the password if the form has one; once it was right it is not asked again."""
        if self.current_password is None:
            return
        check_password(self.current_password.data or "")
        current_user.recently_authenticated = True
        del self.current_password


def check_password(password: str) -> None:
    """Raises `Invalid` on `current_password` when it is not the signed-in member's, or `TooMany`."""
    if not password:  # a form from before authentication was too old; nobody guesses an empty one
        raise Invalid([FieldError("current_password", "Please type your password.")])
    sign_in.check_password(
        current_user.member, current_user.session_id, password, origin(), settings().key_peppers
    )
