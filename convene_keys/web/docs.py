"""`/docs/api`: the reference of the REST API, made from the operations table."""

import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from urllib.parse import urlencode

from flask import Blueprint, Response
from markupsafe import Markup, escape

from convene_keys import limits
from convene_keys.http.access import Access, access, settings
from convene_keys.operations import reference
from convene_keys.operations.reference import CODES, EXAMPLE_URL, Description
from convene_keys.operations.schemas import NUMBER_MAX, Json
from convene_keys.operations.table import OPERATIONS, ROOT, Operation
from convene_keys.web.respond import page

blueprint = Blueprint("docs", __name__, url_prefix="/docs")

# How every piece of Python on the page begins, and how it goes through a list.
PYTHON = """\
import os
import requests

api = requests.Session()
api.headers["Authorization"] = f"Bearer {{os.environ['CONVENE_API_KEY']}}"
root = "{root}\""""
PAGING = """\
def every(path, **query):
    page = api.get(f"{root}/{path}", params=query).json()
    yield from page["data"]
    if page["next_cursor"]:
        yield from every(path, **query | {"cursor": page["next_cursor"]})"""


@dataclass(frozen=True)
class Entry:
    """An operation as the page shows it, with its example as it is copied."""

    described: Description
    curl: str
    python: str
    answer: Markup


@blueprint.get("/api")
@access(Access.OPEN)
def api() -> Response:
    """Shows nobody's data, so that a developer can read it before there is a key."""
    base_url = settings().base_url
    problem = _as_json(reference.problems()["422"]).replace(EXAMPLE_URL, base_url)
    return page(
        "docs/api.html",
        site=base_url,
        root=base_url + ROOT,
        groups=_groups(base_url),
        shapes=_shapes(),
        codes=CODES,
        problem=problem,
        words=words,
        marked=_marked,
        python=PYTHON.format(root=base_url + ROOT),
        paging=PAGING,
        rate=settings().key_rate_limit,
        failures=limits.FAILURES,
    )


@cache
def _groups(base_url: str) -> list[tuple[str, list[Entry]]]:
    by_group = groupby(map(reference.describe, OPERATIONS), lambda one: one.group)
    return [(name, [_entry(one, base_url + ROOT) for one in found]) for name, found in by_group]


@cache
def _shapes() -> dict[str, dict[str, Json]]:
    """The fields of each shape but of lists, which all look the same."""
    return {
        name: schema["properties"]
        for name, schema in reference.shapes().items()
        if "properties" in schema and "next_cursor" not in schema["properties"]
    }


def _entry(one: Description, root: str) -> Entry:
    placed = {field.name for field in one.inputs if field.place == "path"}
    rest = {name: value for name, value in one.given.items() if name not in placed}
    path = one.operation.path.format_map(one.given)
    curl, python = _curl(one.operation, root + path, rest), _python(one.operation, path, rest)
    return Entry(one, curl, python, _as_json(one.answer))


def _curl(operation: Operation, address: str, rest: Json) -> str:
    query = f"?{urlencode(rest)}" if rest and operation.method == "GET" else ""
    method = "" if operation.method == "GET" else f"-X {operation.method} "
    lines = [
        f"curl {method}{shlex.quote(address + query)}",
        '-H "Authorization: Bearer $CONVENE_API_KEY"',
    ]
    if rest and not query:
        body = shlex.quote(json.dumps(rest, ensure_ascii=False))
        lines += ['-H "Content-Type: application/json"', f"-d {body}"]
    return " \\\n  ".join(lines)


def _python(operation: Operation, path: str, rest: Json) -> str:
    more = f", {'params' if operation.method == 'GET' else 'json'}={rest!r}" if rest else ""
    return f'api.{operation.method.lower()}(f"{{root}}{path}"{more}).json()'


def _as_json(value: object) -> Markup:
    """As text of an element, in which quotes may stay what they are."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return Markup(text.replace("&", "&amp;").replace("<", "&lt;"))  # noqa: S704  it is escaped


def _marked(text: str) -> Markup:
    """A description, in which code stands between backticks."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def words(schema: Json) -> str:
    """What a field may hold, in words: `whole number, 1 to 100`."""
    if "anyOf" in schema:
        return " or ".join(words(choice) for choice in schema["anyOf"])
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        target = reference.shapes()[name]
        return words(target) if "enum" in target else str(name)
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    least, most, length = (schema.get(name) for name in ("minimum", "maximum", "maxLength"))
    match schema["type"], schema.get("format"):
        case "integer", _:
            span = f" from {least}" if most == NUMBER_MAX else f", {least} to {most}"
            return "whole number" + (span if least is not None else "")
        case "string", "date":
            return "day, YYYY-MM-DD"
        case "string", "date-time":
            return "time, RFC 3339"
        case "string", _:
            return f"text of up to {length:,} characters" if length else "text"
        case "boolean", _:
            return "true or false"
        case "array", _:
            return f"list of {words(schema['items'])}"
        case kind, _:
            return str(kind)
