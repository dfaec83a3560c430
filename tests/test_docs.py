"""The README and docs are true: what they name is there, and what is there is named."""

import inspect
import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from flask import Flask

from convene_keys import config
from tests.databases import environ

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = (ROOT / "docs" / "settings.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_setting_is_in_the_table_and_no_other() -> None:
    read = set(
        re.findall(
            r'(?:read|read\.optional|_secret)\((?:read, )?"([A-Z_]+)"', inspect.getsource(config)
        )
    )
    read |= set(re.findall(r"read\('([A-Z_]+)'", inspect.getsource(config)))
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", SETTINGS, re.MULTILINE))
    assert "DATABASE_URL" in read
    assert documented == read


def test_the_documented_defaults_are_the_real_ones(tmp_path: Path) -> None:
    settings = config.load({}, tmp_path)
    for name, value in {
        "TRUSTED_PROXIES": settings.trusted_proxies,
        "SUPPORT_EMAIL": settings.support_email,
        "KEY_RATE_LIMIT": f"{settings.key_rate_limit.calls}/minute",
        "SESSION_IDLE_MINUTES": int(settings.session_idle.total_seconds() // 60),
        "SESSION_MAX_HOURS": int(settings.session_max.total_seconds() // 3_600),
    }.items():
        assert f"| `{name}` | `{value}` |" in SETTINGS
    assert settings.key_rate_limit.seconds == 60
    assert settings.base_url == "http://127.0.0.1:8000"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"`?\bmake ([a-z-]+)`", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


# What runs a command: with the service, and without.
RUN = ("convene-keys", ".venv/bin/flask --app wsgi")


def test_every_command_that_is_named_exists_with_its_options(app: Flask) -> None:
    run = "|".join(map(re.escape, RUN))
    for page in PAGES:
        text = page.read_text()
        assert not re.findall(r"(?<!\.venv/bin/)\bflask --app", text), "that fails as it stands"
        lines = re.findall(rf"(?:^ *|`)(?:{run}) ([a-z](?:[^`\n\\]|\\\n)*)", text, re.MULTILINE)
        for line in lines:
            command: click.Command = app.cli
            words = shlex.split(line, comments=True)
            while isinstance(command, click.Group):
                assert words[0] in command.commands, f"{page.name}: {line}"
                command = command.commands[words.pop(0)]
            command.make_parser(click.Context(command)).parse_args(words)


def test_command_runs_as_it_is_written(tmp_path: Path) -> None:
    line = f"{RUN[1]} doctor"
    assert f"`{line}`" in SETTINGS
    settings = environ(f"sqlite:///{tmp_path}/none.db")
    done = subprocess.run(
        line.split(), cwd=ROOT, env=settings, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (5, "")  # it looked, and there is no database
    assert "database" in done.stdout


def test_every_room_and_module_is_in_the_architecture_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("## Rooms")[1].split("## Floors")[0]
    rows = dict(re.findall(r"^\| (`.+?`) \| (.*) \|$", table, re.MULTILINE))
    named = {name.rstrip("/") for cell in rows for name in re.findall(r"`(\w+/?)`", cell)}
    package = ROOT / "convene_keys"
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert named == there - {"__init__", "__pycache__"}
    for cell, what in rows.items():
        room = package / cell.strip("`/")
        if room.is_dir() and room.name not in ("http", "api"):
            for module in re.findall(r"`(\w+)`", what):
                assert (room / f"{module}.py").exists(), f"{room.name}/{module}"
