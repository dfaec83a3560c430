"""What a machine is answered, whichever application answers it, and what each error means."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import NamedTuple

from flask import Response
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError
from werkzeug.exceptions import HTTPException

from convene_keys import errors
from convene_keys.errors import Invalid, Problem
from convene_keys.operations.schemas import Json

log = logging.getLogger(__name__)
NO_STORE = ("Cache-Control", "no-store")
JSON = (("Content-Type", "application/json"), NO_STORE)


class Answer(NamedTuple):
    """A whole answer, but for its length and what all answers carry."""

    body: bytes
    status: int = 200
    headers: Sequence[tuple[str, str]] = JSON

    def as_response(self) -> Response:
        return Response(self.body, self.status, self.headers)


def problem_document(problem: Problem, request_id: str | None, url: str) -> Answer:
    """What went wrong as `application/problem+json` (RFC 9457): a stable `code`, a sentence, the request.

    `url` is the address of this product, where its codes are described.
    """
    body: Json = {
        "type": f"{url}/docs/api#{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
    }
    if isinstance(problem, Invalid):
        body["errors"] = [asdict(error) for error in problem.errors]
    return Answer(
        json.dumps(body, ensure_ascii=False).encode(),
        problem.status,
        (*problem.headers.items(), NO_STORE, ("Content-Type", "application/problem+json")),
    )


def problem_of(error: Exception, words: Mapping[int, str] | None = None) -> Problem:
    """The problem that an error is answered with; `words` by status where another raised it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException) and error.code is not None:
        allowed = getattr(error, "valid_methods", None) or ()
        detail = (words or {}).get(error.code) or error.description or error.name
        return errors.of_status(error.code, detail, allowed)
    if isinstance(error, OperationalError | InterfaceError | TimeoutError):
        log.warning("database away: %s", error.__class__.__name__, exc_info=error)
        return errors.Unavailable("The database can’t be reached. Please try again in a moment.")
    log.error("unexpected error", exc_info=error)
    return Problem("This is our fault, not yours. Nothing was changed.")
