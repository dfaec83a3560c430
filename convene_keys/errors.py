"""What can go wrong, each with a stable code. Raised below, turned into an answer once, on top."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One field of an input and what is wrong with it, in plain words."""

    field: str
    message: str


class Problem(Exception):
    """A refusal with an HTTP status, a stable machine code and a sentence for a person."""

    status = 500
    code = "internal"
    title = "Something went wrong"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.code
        self.headers: dict[str, str] = {}  # the HTTP headers that go with the status (RFC 9110)


class Malformed(Problem):
    status, code, title = 400, "malformed", "The request could not be read"


class Unauthenticated(Problem):
    status, code, title = 401, "unauthenticated", "A working API key is needed"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        # With an error only where a key was sent (RFC 6750, 3.1).
        sent = self.code not in (Unauthenticated.code, "key_missing")
        self.headers = {"WWW-Authenticate": 'Bearer error="invalid_token"' if sent else "Bearer"}


class Forbidden(Problem):
    status, code, title = 403, "forbidden", "Not allowed"


class NotFound(Problem):
    status, code, title = 404, "not_found", "Not found"


class MethodNotAllowed(Problem):
    status, code, title = 405, "method_not_allowed", "Method not allowed"

    def __init__(self, detail: str, *, allowed: Sequence[str]) -> None:
        super().__init__(detail)
        self.headers = {"Allow": ", ".join(allowed)}


class Conflict(Problem):
    status, code, title = 409, "conflict", "Not possible in this state"


class TooLarge(Problem):
    status, code, title = 413, "too_large", "The request is too large"


class UnsupportedMediaType(Problem):
    status, code, title = 415, "unsupported_media_type", "JSON is needed"


class Invalid(Problem):
    status, code, title = 422, "invalid", "Some of the input is not valid"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(" ".join(f"{e.field}: {e.message}" for e in errors))
        self.errors = tuple(errors)


def cleaned(field: str, clean: Callable[[], str]) -> str:
    """What `clean` returns. Raises `Invalid` on `field` with the sentence of its `ValueError`."""
    try:
        return clean()
    except ValueError as error:
        raise Invalid([FieldError(field, str(error))]) from None


class TooMany(Problem):
    status, code, title = 429, "too_many", "Too many tries"

    def __init__(self, detail: str, *, retry_after: int, code: str | None = None) -> None:
        """`retry_after` in seconds."""
        super().__init__(detail, code=code)
        self.headers = {"Retry-After": str(retry_after)}


class Unavailable(Problem):
    status, code, title = 503, "unavailable", "Away for a moment"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.headers = {"Retry-After": "5"}


_BY_STATUS: dict[int, type[Problem]] = {
    kind.status: kind
    for kind in (
        Malformed,
        Unauthenticated,
        Forbidden,
        NotFound,
        Conflict,
        TooLarge,
        UnsupportedMediaType,
        Unavailable,
    )
}


def of_status(status: int, detail: str, allowed: Sequence[str] = ()) -> Problem:
    """The problem for an HTTP status that something else than this product raised."""
    if status == 405:
        return MethodNotAllowed(detail, allowed=sorted(allowed))
    if status in _BY_STATUS:
        return _BY_STATUS[status](detail)
    problem = Problem(detail) if status >= 500 else Malformed(detail)
    problem.status = status
    return problem
