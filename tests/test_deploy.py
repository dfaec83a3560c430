"""What `deploy/` has: rules of scanners, and units that keep a command where the service is kept."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from convene_keys.keys import tokens

ROOT = Path(__file__).resolve().parent.parent
SCANNING = ROOT / "deploy/scanning"


def _gitleaks() -> str:
    [rule] = tomllib.loads((SCANNING / "gitleaks.toml").read_text())["rules"]
    assert rule["keywords"] == [tokens.PREFIX]
    assert rule["secretGroup"] == 1
    return str(rule["regex"])


def _trufflehog() -> str:
    [detector] = yaml.safe_load((SCANNING / "trufflehog.yml").read_text())["detectors"]
    assert detector["keywords"] == [tokens.PREFIX]
    return str(detector["regex"]["key"])


def _github() -> str:
    rows = dict(
        re.findall(
            r"^\| ([\w ]+) \| `(.+)` \|$", (SCANNING / "github.md").read_text(), re.MULTILINE
        )
    )
    after = rows["After secret"].replace(r"\|", "|").replace(r"\z", r"\Z")
    rule = f"({rows['Secret format']})(?:{after})"
    assert re.search(rule, rows["Test string"])
    return rule


RULES = {"gitleaks": _gitleaks, "trufflehog": _trufflehog, "github": _github}
AROUND = (
    "{}",
    '"{}"',
    "key={}\n",
    "https://x/?key={}&a=1",
    "'{}',",
    "\\n{}\\n",
    "a {} b",
    "{}_old",
)


@pytest.mark.parametrize("tool", RULES)
def test_rule_finds_a_key_and_nothing_that_is_almost_one(tool: str) -> None:
    rule = re.compile(RULES[tool]())
    for _ in range(50):
        token = tokens.mint()
        for around in AROUND:
            assert [found[1] for found in rule.finditer(around.format(token))] == [token], around
        for almost in (token[:-1], token + "0", token.upper(), token[1:], token.replace("_", "-")):
            assert rule.search(f"key={almost}\n") is None, almost


def test_hook_refuses_files_with_a_key_and_does_not_show_it(tmp_path: Path) -> None:
    [hook] = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["language"] == "script"
    token = tokens.mint()
    clean, leak, binary = (tmp_path / name for name in ("clean", "-leak one", "binary"))
    clean.write_text(f"one\n{token[:-1]}\nfm_org_…\n")
    leak.write_text(f"one\nkey = '{token}'\n")
    binary.write_bytes(b"\0\xff" + token.encode() + b"\0")

    def run(*files: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [ROOT / hook["entry"], *files],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    assert run("clean") == (0, "", "")
    assert run() == (0, "", "")
    code, told, _ = run("clean", "-leak one", "binary")
    assert code == 1
    assert told.splitlines()[:2] == [
        "-leak one:2: a Convene API key",
        "binary:1: a Convene API key",
    ]
    assert token not in told


def settings_of(unit: str, section: str = "Service") -> list[tuple[str, str]]:
    """The settings of a section of a unit, in their order."""
    text = (ROOT / "deploy" / unit).read_text()
    [body] = re.findall(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    return re.findall(r"^(\w+)=(.*)$", body, re.MULTILINE)


# How each of them runs, in place of where and with what.
OWN = {"Type", "NotifyAccess", "ExecStart", "ExecStartPre", "ExecReload"}
OWN |= {"KillMode", "TimeoutStopSec", "Restart", "RestartSec"}


def test_timer_runs_what_the_service_runs_as_and_no_less_walled_in() -> None:
    service, timer = (
        [pair for pair in settings_of(unit) if pair[0] not in OWN]
        for unit in ("convene-keys.service", "convene-keys-remind.service")
    )
    assert timer == service
    assert ("SystemCallErrorNumber", "EPERM") in service


def test_command_runs_as_the_service_does() -> None:
    service = dict(settings_of("convene-keys.service"))
    script = (ROOT / "deploy" / "convene-keys").read_text()
    assert set(re.findall(r"--(uid|gid|working-directory|property)=(\S+)", script)) == {
        ("uid", service["User"]),
        ("gid", service["Group"]),
        ("working-directory", service["WorkingDirectory"]),
        ("property", f"EnvironmentFile={service['EnvironmentFile']}"),
        ("property", f"UMask={service['UMask']}"),
    }
    assert service["ExecStartPre"].startswith(re.findall(r"-- (\S+ --app wsgi)", script)[0])


@pytest.mark.parametrize("unit", sorted((ROOT / "deploy").glob("*.service")), ids=lambda u: u.name)
def test_systemd_knows_every_setting(unit: Path, tmp_path: Path) -> None:
    """`make deploytest` starts them; this finds a misspelt one, where systemd is installed."""
    if shutil.which("systemd-analyze") is None:
        return
    text = unit.read_text()
    (tmp_path / unit.name).write_text(
        re.sub(r"^(Exec\w+)=.*", r"\1=/bin/true", text, flags=re.MULTILINE)
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / unit.name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
