"""Problems as `application/problem+json` (RFC 9457)."""

import json
from dataclasses import asdict

from flask import Response

from convene_keys.errors import Invalid, Problem
from convene_keys.http.access import origin, settings
from convene_keys.operations.schemas import Json


def problem_document(problem: Problem) -> Response:
    """The answer that tells a machine what went wrong: a stable `code`, a sentence, the request."""
    body: Json = {
        "type": f"{settings().base_url}/docs/api#{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": origin().request_id,
    }
    if isinstance(problem, Invalid):
        body["errors"] = [asdict(error) for error in problem.errors]
    return Response(
        json.dumps(body, ensure_ascii=False),
        status=problem.status,
        headers={**problem.headers, "Cache-Control": "no-store"},
        mimetype="application/problem+json",
    )
