"""Logging: one line format for all that runs, from which every key is cut out.

What others sent can't make a line of its own, or move a terminal's cursor: control characters are
escaped, and what follows a line that is ours, such as a traceback, is indented.
"""

import logging
import logging.config

from convene_keys.text import redact


class SafeFormatter(logging.Formatter):
    """Cuts keys out of the whole text, tracebacks included, and escapes what can't be printed."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _printable(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        lines = super().format(record).split("\n")
        return redact("\n  ".join(_printable(line) for line in lines))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _logger(handler: str) -> dict[str, object]:
    return {"level": "INFO", "handlers": [handler], "propagate": False}


CONFIG: dict[str, object] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "convene_keys.logging.SafeFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
        },
        "access": {"()": "convene_keys.logging.SafeFormatter", "format": "%(message)s"},
    },
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": "line"},
        "access": {"class": "logging.StreamHandler", "formatter": "access"},
    },
    "root": {"level": "WARNING", "handlers": ["stderr"]},
    "loggers": {"gunicorn.error": _logger("stderr"), "gunicorn.access": _logger("access")},
}


def configure() -> None:
    logging.config.dictConfig(CONFIG)
