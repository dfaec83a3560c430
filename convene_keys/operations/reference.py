"""What describes the operations to the outside: inputs, refusals and real examples.

Read off the operations table; the OpenAPI document, the page of the reference and the tools of
assistants are made from it.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from convene_keys.operations.schemas import Json
from convene_keys.operations.table import OPERATIONS, Operation

# The address of which the examples tell; whoever shows them puts the real one in its place.
EXAMPLE_URL = "https://keys.example.org"


@dataclass(frozen=True)
class InputField:
    """One input of an operation: where it goes, and its JSON schema without references."""

    name: str
    place: Literal["path", "query", "body"]
    required: bool
    schema: Json

    @property
    def description(self) -> str:
        return str(self.schema["description"])


@dataclass(frozen=True)
class Description:
    """An operation as it is told to the outside.

    `group` is the noun that it is about: `Market dates`; `output` the name of the shape with which
    it answers; `refusals` the statuses with which it may refuse. It really answers `answer` to the
    input `given` on the sample data.
    """

    operation: Operation
    group: str
    inputs: tuple[InputField, ...]
    output: str
    refusals: tuple[int, ...]
    given: Json
    answer: Json


@dataclass(frozen=True)
class Code:
    """A stable code of a problem document, its HTTP status, and what it means."""

    status: int
    code: str
    words: str


def _data(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


CODES = tuple(Code(**row) for row in json.loads(_data("codes.json")))


@cache
def describe(operation: Operation) -> Description:
    noun = operation.path.split("/")[1]
    inputs = _inputs(operation)
    example = _examples()["operations"][operation.name]
    return Description(
        operation,
        "This key" if noun == "me" else noun.replace("_", " ").capitalize(),
        inputs,
        operation.output.__name__.removesuffix("Out"),
        _refusals(operation, inputs),
        example["input"],
        example["answer"],
    )


def _inputs(operation: Operation) -> tuple[InputField, ...]:
    """What the operation takes, in the order of its model."""
    model = inlined(operation.input, "validation")
    found = []
    for name, schema in model["properties"].items():
        place: Literal["path", "query", "body"] = "query" if operation.method == "GET" else "body"
        if f"{{{name}}}" in operation.path:
            place = "path"
        elif place == "query" and "anyOf" in schema:  # an address can't say null
            choice, _ = schema["anyOf"]
            schema = choice | {key: schema[key] for key in ("description", "default")}
            if "enum" in schema:  # in the order that the document has always had
                schema = {"type": schema["type"], **schema}
        schema.pop("title", None)
        if schema.get("default", "") is None:
            del schema["default"]
        found.append(InputField(name, place, name in model.get("required", ()), schema))
    return tuple(found)


def _refusals(operation: Operation, inputs: tuple[InputField, ...]) -> tuple[int, ...]:
    found = {400, 401, 403, 422, 429, 503}
    if "{id}" in operation.path or any(given.name == "key" for given in inputs):
        found.add(404)
    if operation.method != "GET":
        found |= {413, 415}
    if operation.method == "POST":  # a decision that the state of the thing may rule out
        found.add(409)
    return tuple(sorted(found))


def inlined(model: type[BaseModel], mode: JsonSchemaMode) -> Json:
    """A model's JSON Schema in one piece, since not every client follows references."""
    whole = model.model_json_schema(mode=mode)
    definitions = whole.pop("$defs", {})

    def resolved(part: object) -> object:
        if isinstance(part, list):
            return [resolved(item) for item in part]
        if not isinstance(part, dict):
            return part
        target = definitions[part["$ref"].rpartition("/")[2]] if "$ref" in part else {}
        return {key: resolved(value) for key, value in (target | part).items() if key != "$ref"}

    return {key: resolved(value) for key, value in whole.items()}


@cache
def shapes() -> dict[str, Json]:
    """The JSON schema of each model that answers are made of, by its name on the outside."""
    models = {operation.output: None for operation in OPERATIONS}
    _, found = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/components/schemas/{model}"
    )
    text = json.dumps(found["$defs"])
    for name in found["$defs"]:
        text = text.replace(f'{name}"', f'{name.removesuffix("Out")}"')
    described: dict[str, Json] = json.loads(text)
    for schema in described.values():
        schema.pop("title")
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
            if field.get("type") == "object":  # clients built on function calls want to be told
                field.setdefault("properties", {})
    return described


@cache
def _examples() -> dict[str, Json]:
    """Made by `make reference` from calls of the real API on the sample data."""
    found: dict[str, Json] = json.loads(_data("reference.json"))
    return found


def problems() -> Json:
    """A real problem document for each status that is a refusal."""
    return _examples()["problems"]
