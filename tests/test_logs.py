"""No key reaches a log line."""

import io
import logging
import logging.config

import pytest

from convene_keys import logs, tokens


def _handler(output: io.StringIO) -> logging.Handler:
    handler = logging.StreamHandler(output)
    handler.setFormatter(logs.RedactingFormatter("%(levelname)s %(message)s"))
    return handler


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(output: io.StringIO) -> logging.Logger:
    logger = logging.getLogger("tests.redacted")
    logger.propagate = False
    logger.handlers = [_handler(output)]
    return logger


def test_key_is_cut_from_message_and_arguments(logger: logging.Logger, output: io.StringIO) -> None:
    token = tokens.mint()
    logger.warning("%s and %r in " + token, token, {"key": token})
    assert token not in output.getvalue()
    assert output.getvalue().count(tokens.hint(token) + "…") == 3


def test_key_is_cut_from_a_traceback(logger: logging.Logger, output: io.StringIO) -> None:
    token = tokens.mint()
    try:
        raise ValueError(f"bad key {token}")
    except ValueError:
        logger.exception("failed", stack_info=True)
    assert "Traceback" in output.getvalue()
    assert "ValueError: bad key fm_org_" in output.getvalue()
    assert token not in output.getvalue()


def test_configure_gives_every_handler_the_redacting_formatter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[dict[str, object]] = []
    monkeypatch.setattr(logging.config, "dictConfig", seen.append)
    logs.configure()
    assert seen == [logs.CONFIG]
    for handler in logs.CONFIG["handlers"].values():
        made = logs.CONFIG["formatters"][handler["formatter"]]
        assert made["()"] == "convene_keys.logs.RedactingFormatter"


def test_configuration_is_one_that_logging_takes() -> None:
    logging.config.DictConfigurator(logs.CONFIG)
    names = ("root", *logs.CONFIG["loggers"])
    assert names == ("root", "gunicorn.error", "gunicorn.access")
