"""What takes longest in making an application and its pages, done once for all tests of a process."""

import tempfile
from functools import lru_cache
from typing import Any

from flask import Flask
from jinja2 import FileSystemBytecodeCache
from werkzeug.routing import Rule

_pages = tempfile.TemporaryDirectory(prefix="templates-")


class CompiledOnce(Rule):
    """A route whose code is made once for all applications: that is most of making one."""

    @lru_cache(1_000)  # noqa: B019  equal rules share it
    def _compile_builder(self, append_unknown: bool = True) -> Any:
        return super()._compile_builder(append_unknown)

    def __hash__(self) -> int:
        return hash(self.rule)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and (self.rule, self.defaults, self.build_only) == (
            other.rule,
            other.defaults,
            other.build_only,
        )


def once() -> None:
    """Let each application that is made from here on find what another one has compiled."""
    Flask.jinja_options = {"bytecode_cache": FileSystemBytecodeCache(_pages.name)}
    Flask.url_rule_class = CompiledOnce
