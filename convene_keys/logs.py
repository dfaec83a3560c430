"""Logging: one line format for all that runs, from which every key is cut out."""

import logging
import logging.config
from typing import Any

from convene_keys.tokens import redact


class RedactingFormatter(logging.Formatter):
    """Cuts keys out of the whole text, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def _logger(handler: str) -> dict[str, Any]:
    return {"level": "INFO", "handlers": [handler], "propagate": False}


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {
            "()": "convene_keys.logs.RedactingFormatter",
            "format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
        },
        "access": {"()": "convene_keys.logs.RedactingFormatter", "format": "%(message)s"},
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
