"""Powerful actions need the password again when it was last given more than 30 minutes ago."""

from typing import Any

from flask_login import current_user
from wtforms import PasswordField

from convene_keys.accounts import sign_in
from convene_keys.errors import FieldError, Invalid
from convene_keys.http.access import origin, settings
from convene_keys.web.forms import Form


class ReauthForm(Form):
    """A form that asks for `current_password` when the session is not fresh."""

    current_password = PasswordField("Your password")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if current_user.fresh:
            del self.current_password


def confirm_password(form: ReauthForm) -> bool:
    """Whether the session is fresh or the password right; if not, the field says so.

    Once it was right the form asks no more. Raises `TooMany` after too many tries.
    """
    if form.current_password is None:
        return True
    try:
        check_password(form.current_password.data or "")
    except Invalid as invalid:
        form.show(invalid)
        return False
    current_user.fresh = True
    del form.current_password
    return True


def check_password(password: str) -> None:
    """Raises `Invalid` on `current_password` when it is not the signed-in member's, or `TooMany`."""
    if not password:  # a form from before the session grew old; nobody guesses an empty one
        raise Invalid([FieldError("current_password", "Please type your password.")])
    sign_in.check_password(
        current_user.member,
        current_user.session_id,
        password,
        origin(),
        settings().key_peppers,
    )
