"""Each call from an address of its own: a network may send only so many without a key.

Not put among a case's own headers, which would make valid input of one without a key.
"""

import itertools
from typing import Any

import schemathesis

_numbers = itertools.count()


def _from_elsewhere(request: Any) -> Any:
    number = next(_numbers)
    request.headers["X-Forwarded-For"] = f"10.0.{number // 256}.{number % 256}"
    return request


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    kwargs["auth"] = _from_elsewhere  # requests lets it change what is about to be sent
