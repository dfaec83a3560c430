"""`keys scan`: every key that is there, where it is, and nothing that is not."""

import base64
import gzip
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from shutil import which

import pytest
from click.testing import Result
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from convene_keys.audit.log import Actor
from convene_keys.keys import lifecycle, tokens
from convene_keys.leaks import scanner
from convene_keys.models import ApiKey, Organization
from tests import factories
from tests.cli.conftest import run, succeeded  # noqa: F401
from tests.conftest import Clock

Run = Callable[..., Result]
BASE62 = bytes((tokens.ALPHABET * 5)[:256], "ascii")


def lines(result: Result) -> list[str]:
    """What it printed about the keys that it found."""
    assert (result.exit_code, result.stderr) == (3, ""), result.output
    return result.stdout.splitlines()


def git(folder: Path, *command: str) -> str:
    who = (
        "-c",
        "user.name=Maya",
        "-c",
        "user.email=maya@example.org",
        "-c",
        "commit.gpgsign=false",
    )
    done = subprocess.run(
        ["git", "-C", folder, *who, *command], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", message)
    return git(folder, "rev-parse", "HEAD")[:10]


# Where keys are written down, each with the line that the key is on.
WAYS: dict[str, Callable[[str], tuple[bytes, int]]] = {
    "quotes.py": lambda key: (f'import os\n\nKEY = "{key}"\n'.encode(), 3),
    "single.rb": lambda key: (f"key = '{key}'".encode(), 1),
    "plain": lambda key: (key.encode(), 1),
    "data.json": lambda key: (json.dumps({"a": [1], "key": key}, indent=1).encode(), 5),
    "escaped.json": lambda key: (json.dumps({"text": f'say "{key}"\n{key}'}).encode(), 1),
    "page.html": lambda key: (f"<p>\n<a href='https://x.example/?k={key}&amp;a=1'>".encode(), 2),
    "url.txt": lambda key: (f"https://user:{key}@example.org/path".encode(), 1),
    ".env": lambda key: (f"# mine\nDEBUG=1\nCONVENE_API_KEY={key}\n".encode(), 3),
    ".env.windows": lambda key: (f"DEBUG=1\r\nCONVENE_API_KEY={key}\r\n".encode(), 2),
    ".zsh_history": lambda key: (f': 1764000000:0;curl -H "X-API-Key: {key}" h\n'.encode(), 1),
    "config.yml": lambda key: (f"convene:\n  key: {key}  # prod\n".encode(), 2),
    "glued": lambda key: (f"x{key}y_{key}".encode(), 1),
    "behind_a_cut_one": lambda key: (f"{key[:-2]}{key}".encode(), 1),
    "notebook.ipynb": lambda key: (
        json.dumps({"cells": [{"source": [f"key = '{key}'\n"]}]}, indent=0).encode(), 5),
    "memory.dump": lambda key: (b"\0\xff\xfe" * 99 + b"\n" + key.encode() + b"\0\x80", 2),
    "utf16le.txt": lambda key: (f"\ufeffone\ntwo {key}\n".encode("utf-16-le"), 2),
    "utf16be.txt": lambda key: (f"\ufeffone\ntwo\n{key}\n".encode("utf-16-be"), 3),
    "long_line": lambda key: (b"x" * (scanner._CHUNK - 20) + key.encode() + b"x" * 99, 1),
    "long_wide": lambda key: (b"\n" * (scanner._CHUNK - 31) + key.encode("utf-16-le"), scanner._CHUNK - 30),
    "far_down": lambda key: (b"\n" * 3_000_000 + key.encode(), 3_000_001),
}  # fmt: skip


@pytest.fixture
def key(organization: Organization) -> tuple[ApiKey, str]:
    return factories.api_key(organization, "Claude on laptop")


@pytest.mark.parametrize("name", WAYS)
def test_key_is_found_however_it_is_written(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    tmp_path: Path,
    name: str,
) -> None:
    content, line = WAYS[name](key[1])
    (tmp_path / "f" / "deep").mkdir(parents=True)
    file = tmp_path / "f" / "deep" / name
    file.write_bytes(content)
    expected = [f"{file}:{line}: Claude on laptop, active"]
    assert lines(run("keys", "scan", file)) == expected
    assert lines(run("keys", "scan", tmp_path / "f")) == expected


def test_what_is_packed_is_not_looked_into(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "packed.gz").write_bytes(gzip.compress(key[1].encode()))
    (tmp_path / "f" / "base64").write_bytes(base64.b64encode(key[1].encode()))
    assert succeeded(run("keys", "scan", tmp_path / "f")) == ""


def test_status_and_name_of_every_key_are_told_and_no_secret(
    run: Run,  # noqa: F811
    organization: Organization,
    tmp_path: Path,
    fake_clock: Clock,
) -> None:
    other, soon = factories.organization("Elsewhere"), fake_clock.moment.replace(day=27)
    made = {
        "active": factories.api_key(organization, "Works"),
        "expiring": factories.api_key(organization, "Soon", expires_at=soon),
        "expired": factories.api_key(organization, "Old", expires_at=fake_clock.moment),
        "revoked": factories.api_key(other, "Gone"),
    }
    lifecycle.revoke(Actor.system(other.id), made["revoked"][0].id)
    unknown, wrong = tokens.mint(), made["active"][1][:-1] + "!"
    secrets = [secret for _, secret in made.values()]
    file = tmp_path / f"named {secrets[0]}\n.txt"
    file.write_text("\n".join([unknown, *secrets, wrong, secrets[0], f"{secrets[1]} {secrets[1]}"]))
    result = run("keys", "scan", file, file)
    names = [f"{row.name}, {status}" for status, (row, _) in made.items()]
    shown = f"{tmp_path}/named {made['active'][0].hint}…\N{REPLACEMENT CHARACTER}.txt"
    once = [f"{shown}:{n}: {name}" for n, name in enumerate(names, 2)]
    once += [f"{shown}:7: Works, active", f"{shown}:8: Soon, expiring"]
    assert lines(result) == once * 2
    assert not any(secret in result.output for secret in secrets)


def test_nothing_found_is_0_and_unread_is_1_and_found_is_3_all_the_same(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    tmp_path: Path,
) -> None:
    (tmp_path / "clean").write_text("nothing")
    (tmp_path / "leak").write_text(key[1])
    assert succeeded(run("keys", "scan", tmp_path / "clean")) == ""
    missing = run("keys", "scan", tmp_path / "clean", tmp_path / "missing")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == f"{tmp_path}/missing: No such file or directory\n"
    both = run("keys", "scan", tmp_path / "missing", tmp_path / "leak")
    assert (both.exit_code, both.stdout.count("\n"), both.stderr) == (3, 1, missing.stderr)
    assert "Missing argument" in run("keys", "scan").stderr


def test_links_and_what_is_no_file_are_passed_over(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    tmp_path: Path,
) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "leak").write_text(key[1])
    (folder / "link").symlink_to(outside / "leak")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "nowhere").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    assert succeeded(run("keys", "scan", folder)) == ""
    named = run("keys", "scan", folder / "pipe")
    assert (named.exit_code, named.stderr) == (1, f"{folder}/pipe: neither a file nor a folder\n")
    assert lines(run("keys", "scan", folder / "link")) == [
        f"{folder}/link:1: Claude on laptop, active"
    ], "but a link that is named is followed"


def test_file_that_may_not_be_read_is_told() -> None:
    code = (
        "import os, sys; from pathlib import Path; from convene_keys.leaks import scanner as scan\n"
        "os.getuid() or os.setuid(65534)\n"
        "print(list(scan.scan(Path(sys.argv[1]), print)))"
    )
    # Not in pytest's own folder, into which nobody else is let.
    with tempfile.TemporaryDirectory(prefix="locked-") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "file").touch(0)
        done = subprocess.run(
            [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
        )
    assert done.stdout == f"{folder}/file: Permission denied\n[]\n"


# Git ---------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch", "main")
    return folder


def test_key_in_git_history_is_found_where_it_came_in(
    run: Run,  # noqa: F811
    organization: Organization,
    repository: Path,
) -> None:
    made = {n: factories.api_key(organization, n)[1] for n in
            ("Deleted", "Message", "Amended", "Branch", "Tag", "Staged", "Stash", "Changed")}  # fmt: skip
    (repository / "notes é.txt").write_text(f"one\ntwo {made['Deleted']}\n")
    (repository / "changed").write_text("harmless\n" * 9)
    first = commit(repository, "Begin")
    (repository / "changed").write_text("harmless\n" * 9 + made["Changed"])
    second = commit(repository, "Change")
    (repository / "changed").write_text("harmless\n" * 9)
    (repository / "notes é.txt").unlink()
    third = commit(repository, f"Remove it\n\nIt had {made['Message']} in it.")
    git(repository, "checkout", "--quiet", "-b", "side")
    (repository / "side").write_text(made["Branch"])
    side = commit(repository, "Side")
    git(repository, "checkout", "--quiet", "main")
    (repository / "amended").write_text(made["Amended"])
    amended = commit(repository, "Oops")
    (repository / "amended").write_text("")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--amend", "--message", "Fine")
    git(repository, "tag", "--annotate", "v1", "--message", f"Tag {made['Tag']}")
    tag = git(repository, "rev-parse", "v1")[:10]
    (repository / "changed").write_text(made["Stash"])
    git(repository, "stash")
    stash = git(repository, "rev-parse", "stash@{0}")[:10]
    (repository / "staged").write_text(made["Staged"])
    git(repository, "add", "staged")
    staged = git(repository, "rev-parse", ":staged")[:10]
    (repository / "staged").unlink()
    expected = {
        f"{first}:notes é.txt:2: Deleted, active",
        f"{second}:changed:10: Changed, active",
        f"{third}:commit:8: Message, active",
        f"{side}:side:1: Branch, active",
        f"{amended}:amended:1: Amended, active",
        f"{tag}:tag:6: Tag, active",
        f"{stash}:changed:1: Stash, active",
        f"{staged}:blob:1: Staged, active",
    }
    loose = lines(run("keys", "scan", repository))
    assert {line for line in loose if ".git/" not in line} == expected
    git(repository, "repack", "-a", "-d", "-k", "--quiet")
    for folder in (repository, repository / ".git"):
        found = lines(run("keys", "scan", folder))
        assert {line for line in found if ".git/" not in line} == expected, "packed as well"
        assert len(found) == len(set(found))
    assert not any(secret in "".join(loose) for secret in made.values())


def test_repository_around_or_below_is_looked_into_once(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
    tmp_path: Path,
) -> None:
    (repository / "sub" / "deeper").mkdir(parents=True)
    (repository / "sub" / "deeper" / "file").write_text(key[1])
    leaked = commit(repository, "Oops")
    (repository / "sub" / "deeper" / "file").write_text("")
    commit(repository, "Fine")
    inside = f"{leaked}:sub/deeper/file:1: Claude on laptop, active"
    assert lines(run("keys", "scan", repository / "sub")) == [inside]
    assert lines(run("keys", "scan", repository / "sub", repository)) == [inside] * 2
    git(repository, "worktree", "add", "--quiet", "../tree")
    git(tmp_path, "clone", "--quiet", "--bare", "repository", "bare.git")
    (tmp_path / "repository.moved").mkdir()
    found = [line for line in lines(run("keys", "scan", tmp_path)) if "test.db" not in line]
    assert sorted(found) == [f"{tmp_path}/bare.git/{inside}", f"{tmp_path}/repository/{inside}"]
    assert succeeded(run("keys", "scan", repository / "sub" / "deeper" / "file")) == "", (
        "of a file that is named, only what it holds now"
    )


def test_key_in_gits_own_configuration_is_found(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
) -> None:
    git(repository, "remote", "add", "origin", f"https://x:{key[1]}@git.example.org/fair.git")
    [line] = lines(run("keys", "scan", repository))
    assert line.startswith(f"{repository}/.git/config:")


def test_repository_runs_nothing_of_its_own(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = tmp_path / "ran"
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {shlex.quote(str(ran))}\n")
    program.chmod(0o755)
    (repository / ".gitattributes").write_text("* diff=own filter=own\n")
    (repository / "file").write_text(key[1])
    leaked = commit(repository, "Oops")
    (tmp_path / "more").write_text(f"[core]\n\tfsmonitor = {program}\n")
    for hook in ("fsmonitor-watchman", "post-index-change", "reference-transaction"):
        (tmp_path / hook).symlink_to(program)
    for name in (
        *("core.fsmonitor", "core.pager", "core.sshCommand", "core.editor", "diff.external"),
        *("core.askPass", "core.alternateRefsCommand", "credential.helper", "pager.diff-tree"),
        *("diff.own.textconv", "diff.own.command", "filter.own.smudge", "filter.own.process"),
        *("gpg.program", "uploadpack.packObjectsHook", "alias.cat-file", "interactive.diffFilter"),
    ):
        git(repository, "config", name, str(program))
    git(repository, "config", "log.showSignature", "true")
    git(repository, "config", "core.hooksPath", str(tmp_path))
    git(repository, "config", "include.path", str(tmp_path / "more"))
    git(repository, "config", "includeIf.gitdir:/.path", str(tmp_path / "more"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    found = lines(run("keys", "scan", repository))
    assert found[0] == f"{leaked}:file:1: Claude on laptop, active"
    assert not ran.exists()


# How a repository reaches what is missing in it, each a way to run a program.
REMOTES = {
    "ext::{program}": {},
    "ssh://host.invalid/fair.git": {"core.sshCommand": "{program}"},
    "git://host.invalid/fair.git": {"core.gitProxy": "{program}"},
    "{folder}": {"remote.evil.uploadpack": "{program}"},
}


@pytest.mark.parametrize("url", REMOTES)
def test_repository_fetches_nothing_that_it_lacks(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
) -> None:
    """Also where git is older than 2.39.4 and does not know GIT_NO_LAZY_FETCH."""
    ran, program, older = tmp_path / "ran", tmp_path / "program", tmp_path / "older"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    older.mkdir()
    (older / "git").write_text(f'#!/bin/sh\nunset GIT_NO_LAZY_FETCH\nexec {which("git")} "$@"\n')
    for file in (program, older / "git"):
        file.chmod(0o755)
    (repository / "sub").mkdir()
    (repository / "sub" / "file").write_text("harmless")
    (repository / "leak").write_text(key[1])
    commit(repository, "Oops")
    tree = git(repository, "rev-parse", "HEAD:sub")
    (repository / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    settings = {
        "core.repositoryFormatVersion": "1",
        "extensions.partialClone": "evil",
        "remote.evil.url": url,
        "remote.evil.promisor": "true",
        **{f"protocol.{name}.allow": "always" for name in ("ext", "ssh", "git", "file")},
        **REMOTES[url],
    }
    for name, value in settings.items():
        there = value.format(program=program, folder=repository)
        git(repository, "config", name, there)
    monkeypatch.setenv("PATH", f"{older}:{os.environ['PATH']}")
    monkeypatch.setenv("GIT_ALLOW_PROTOCOL", "ext:ssh:git:file")
    result = run("keys", "scan", repository)
    assert not ran.exists()
    assert "leak:1: Claude on laptop, active" in result.stdout
    assert "promisor remotes" in result.stderr, "and it is said that something is missing"


def test_key_that_a_repository_replaces_is_found(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
) -> None:
    (repository / "leak").write_text(key[1])
    leaked = commit(repository, "Oops")
    before = git(repository, "rev-parse", "HEAD:leak")
    (repository / "leak").write_text("harmless")
    commit(repository, "Fine")
    git(repository, "replace", before, git(repository, "rev-parse", "HEAD:leak"))
    git(repository, "replace", leaked, "HEAD")
    assert lines(run("keys", "scan", repository)) == [f"{leaked}:leak:1: Claude on laptop, active"]


def test_history_that_cannot_be_read_is_told(
    run: Run,  # noqa: F811
    key: tuple[ApiKey, str],
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (repository / "file").write_text(key[1])
    commit(repository, "Oops")
    (repository / "other").write_text(f"{key[1]}\n")
    leaked = commit(repository, "Again")
    first = git(repository, "rev-parse", "HEAD:file")
    file = repository / ".git" / "objects" / first[:2] / first[2:]
    file.chmod(0o644)
    file.write_bytes(b"broken")
    result = run("keys", "scan", repository)
    assert result.exit_code == 3
    assert f"{leaked}:other:1: " in result.stdout, "what can be read still is"
    assert result.stderr.startswith(f"{repository}: error: ")
    monkeypatch.setenv("PATH", "/nowhere")
    for name in ("file", "other"):
        (repository / name).unlink()
    result = run("keys", "scan", repository)
    assert result.exit_code == 1
    assert result.stderr == f"{repository}: git can’t be run (No such file or directory)\n"


# All together ------------------------------------------------------------------------------------


def _text(size: int, source: random.Random) -> bytes:
    return source.randbytes(size).translate(BASE62)


@pytest.mark.on_sqlite
def test_ten_thousand_files_with_two_hundred_keys(
    run: Run,  # noqa: F811
    organization: Organization,
    repository: Path,
) -> None:
    source, expected = random.Random(7), []  # noqa: S311
    made = [factories.api_key(organization, f"Key {n}")[1] for n in range(200)]
    small = {n: way for n, way in WAYS.items() if n not in ("far_down", "long_wide")}
    for number in range(10_000):
        folder = repository / f"d{number % 97}"
        folder.mkdir(exist_ok=True)
        junk = _text(source.randrange(3_000), source)
        near = f"{tokens.PREFIX}{'a' * 38}\n".encode()  # the checksum is wrong
        (folder / f"f{number}").write_bytes(junk + near + junk[:99] + b"\n")
    for number, secret in enumerate(made[:160]):
        name, way = list(small.items())[number % len(small)]
        file = repository / f"d{number % 97}" / f"{number} {name}"
        content, line = way(secret)
        file.write_bytes(content)
        expected.append(f"{file}:{line}: Key {number}, active")
    (repository / ".gitignore").write_text("d*\n")
    for number, secret in enumerate(made[160:180], 160):
        (repository / f"kept {number}").write_text(f"\n{secret}\n")
    leaked = commit(repository, "Keep")
    for number in range(160, 180):
        (repository / f"kept {number}").unlink()
        expected.append(f"{leaked}:kept {number}:2: Key {number}, active")
    commit(repository, "Delete them")
    for number, secret in enumerate(made[180:], 180):
        name = commit(repository, f"Use {secret}")
        expected.append(f"{name}:commit:6: Key {number}, active")
    found = [line for line in lines(run("keys", "scan", repository)) if ".git/" not in line]
    assert sorted(found) == sorted(expected)


def _no_false_find(app: Flask, folder: Path, megabytes: int) -> float:
    """Text of base62, which begins like a key now and then; the MB/s in which none was found."""
    for number in range(megabytes // 64):
        with (folder / f"text {number}").open("wb") as file:
            for _ in range(64):
                text = bytearray(os.urandom(1_000_000).translate(BASE62))
                for at in range(0, len(text), 1_000):
                    text[at : at + 7] = b"fm_org_"
                file.write(text)
    start = time.perf_counter()
    result = app.test_cli_runner().invoke(args=["keys", "scan", str(folder)])
    seconds = time.perf_counter() - start
    assert (result.exit_code, result.output) == (0, "")
    return megabytes / seconds


def test_random_text_makes_no_false_find(app: Flask, tmp_path: Path) -> None:
    factories.api_key(factories.organization())
    (tmp_path / "text").mkdir()
    _no_false_find(app, tmp_path / "text", 64)


@pytest.mark.soak
def test_gigabyte_of_random_text_makes_no_false_find(app: Flask, tmp_path: Path) -> None:
    factories.api_key(factories.organization())
    (tmp_path / "text").mkdir()
    print(f"{_no_false_find(app, tmp_path / 'text', 1_024):,.0f} MB/s, a key’s beginning a KB")


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=100),
            st.sampled_from([b"fm_org_", b"\n", b"fm_org_" + b"0" * 37]),
            st.just(tokens.mint(random.Random(1).choice).encode()),  # noqa: S311
        )
    ),
    st.integers(1, 200),
)
def test_pieces_make_no_difference(parts: list[bytes], chunk: int) -> None:
    """Whatever size the file is read in, the finds are the same, and are what a search finds."""
    content = b"".join(parts)
    whole = scanner.in_file(BytesIO(content))
    usual, scanner._CHUNK = scanner._CHUNK, chunk
    try:
        assert scanner.in_file(BytesIO(content)) == whole
    finally:
        scanner._CHUNK = usual
    token = tokens.mint(random.Random(1).choice)  # noqa: S311
    expected = {
        (content[:at].count(b"\n") + 1, token)
        for at in range(len(content))
        if content.startswith(token.encode(), at)
    }
    assert set(whole) == expected
