"""Finds what has the form and checksum of a key in files and in git history. Offline, read-only.

Compressed files are read as they are, so what is packed in them stays unseen; git's own objects
are unpacked by git.
"""

import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from convene_keys.keys import tokens

_CHUNK = 1 << 20
# Only the beginning is used up: of a key behind the rest of another nothing is lost.
_PLAIN = re.compile(rb"fm_org_(?=([0-9A-Za-z]{38}))")
# UTF-16, whichever byte comes first: Windows' shells write it.
_WIDE = re.compile(rb"f\0m\0_\0o\0r\0g\0_(?=((?:\0[0-9A-Za-z]){38}))")
_LONGEST = 2 * 45
_IN_MEMORY = 64 << 20
_ABBREVIATED = 10
_HITS_AT_ONCE = 500

Complain = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A token, and where: `place` is a file, or `COMMIT:path`; lines count from 1."""

    place: str
    line: int
    token: str


def scan(path: Path, complain: Complain) -> Iterator[Found]:
    """What is in a file, or in a folder with all below it and the git history that it has part in.

    Links below `path` are not followed. `complain` gets a line for each thing that can't be read.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        complain(f"{path}: {error.strerror}")
        return
    if stat.S_ISREG(mode):
        yield from _file(path, complain, os.O_RDONLY)
        return
    if not stat.S_ISDIR(mode):
        complain(f"{path}: neither a file nor a folder")
        return
    seen: set[str] = set()
    yield from _history(path, "", seen, complain)
    walk = os.walk(path, onerror=lambda e: complain(f"{e.filename}: {e.strerror}"))
    for folder, folders, names in walk:
        here = Path(folder)
        folders.sort()
        if (
            "objects" in folders and "HEAD" in names
        ):  # in a .git, or a bare repository: git reads it
            folders.remove("objects")
            if here.name != ".git":
                yield from _history(here, f"{here}/", seen, complain)
        elif here != path and (".git" in folders or ".git" in names):
            yield from _history(here, f"{here}/", seen, complain)
        for name in sorted(names):
            yield from _file(here / name, complain, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def in_file(file: IO[bytes]) -> list[tuple[int, str]]:
    """The line and the token of everything in a file that has the form and checksum of a key."""
    found: list[tuple[int, str]] = []
    tail, start = b"", 0
    while part := file.read(_CHUNK):
        window, fresh = tail + part, len(tail)
        matches = [m for m in _PLAIN.finditer(window) if m.end(1) > fresh]
        if b"\0" in window:
            matches += [m for m in _WIDE.finditer(window) if m.end(1) > fresh]
        for match in matches:
            token = tokens.PREFIX + match[1].replace(b"\0", b"").decode()
            if tokens.is_well_formed(token):
                found.append((start - fresh + match.start(), token))
        start += len(part)
        tail = window[-_LONGEST:]
    return _lines(file, sorted(found)) if found else []


def _lines(file: IO[bytes], found: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """The lines in place of the offsets. Counted only now, since most files hold nothing."""
    file.seek(0)
    numbered: dict[tuple[int, str], None] = {}
    line, at = 1, 0
    for offset, token in found:
        while at < offset:
            part = file.read(min(_CHUNK, offset - at))
            if not part:  # it was cut off meanwhile
                break
            line, at = line + part.count(b"\n"), at + len(part)
        numbered[line, token] = None
    return list(numbered)


def _file(path: Path, complain: Complain, flags: int) -> Iterator[Found]:
    try:
        descriptor = os.open(path, flags)
        with open(descriptor, "rb", buffering=0) as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                yield from (Found(str(path), *each) for each in in_file(file))
    except OSError as error:
        if not path.is_symlink():
            complain(f"{path}: {error.strerror}")


# Git ---------------------------------------------------------------------------------------------


def _history(folder: Path, prefix: str, seen: set[str], complain: Complain) -> Iterator[Found]:
    """What is in git's objects: all that was ever committed or staged and is not cleared away yet."""
    try:
        where = _git(folder, "rev-parse", "--git-common-dir")
        if where.returncode:
            if b"not a git repository" not in where.stderr:
                complain(f"{folder}: {_said(where.stderr)}")
            return
        common = os.path.realpath(folder / os.fsdecode(where.stdout.rstrip(b"\n")))
        if common not in seen:
            seen.add(common)
            yield from _objects(folder, prefix, complain)
    except OSError as error:
        complain(f"{folder}: git can’t be run ({error.strerror})")


def _objects(folder: Path, prefix: str, complain: Complain) -> Iterator[Found]:
    hits: dict[str, list[tuple[int, str]]] = {}
    kinds: dict[str, str] = {}
    every = ("cat-file", "--batch-all-objects", "--batch", "--unordered", "--buffer")
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(  # noqa: S603
            _command(folder, *every), stdout=subprocess.PIPE, stderr=said, env=_environ()
        ) as git:
            assert git.stdout is not None  # noqa: S101
            for name, kind, content in _contents(git.stdout):
                if found := in_file(content):
                    hits[name], kinds[name] = found, kind
        if git.returncode or said.tell():
            said.seek(0)
            complain(f"{folder}: {_said(said.read())}")
    blobs = [name for name, kind in kinds.items() if kind == "blob"]
    places = _places(folder, blobs) if blobs else {}
    for name, found in hits.items():
        place = places.get(name, f"{name[:_ABBREVIATED]}:{kinds[name]}")
        yield from (Found(prefix + place, line, token) for line, token in found)


def _contents(stream: IO[bytes]) -> Iterator[tuple[str, str, IO[bytes]]]:
    """Each object but folders: its name, its kind, and its content as a file."""
    while header := stream.readline().split():
        if len(header) != 3:  # NAME missing
            continue
        name, kind, size = header[0].decode(), header[1].decode(), int(header[2])
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as content:
            left = size
            while left and (part := stream.read(min(left, _CHUNK))):
                left -= len(part)
                if kind != "tree":
                    content.write(part)
            stream.read(1)
            if kind != "tree":
                content.seek(0)
                yield name, kind, content


def _places(folder: Path, blobs: Sequence[str]) -> dict[str, str]:
    """`COMMIT:path` of each blob that is in a commit: the first one that brought it."""
    commits = _git(folder, "rev-list", "--all", "--reflog", "--reverse").stdout
    places: dict[str, str] = {}
    for start in range(0, len(blobs), _HITS_AT_ONCE):
        wanted = blobs[start : start + _HITS_AT_ONCE]
        told = _git(
            folder,
            *("-c", "core.quotePath=false", "diff-tree", "--stdin", "-r", "-m", "--root"),
            *("--no-abbrev", "--no-renames", *(f"--find-object={name}" for name in wanted)),
            stdin=commits,
        ).stdout
        commit = ""
        for line in told.decode(errors="replace").splitlines():
            if line.startswith(":"):
                facts, _, path = line.partition("\t")
                places.setdefault(facts.split()[3], f"{commit[:_ABBREVIATED]}:{path}")
            else:
                commit = line.split()[0]
    return {name: places[name] for name in blobs if name in places}


def _git(folder: Path, *command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(  # noqa: S603
        _command(folder, *command), input=stdin, capture_output=True, env=_environ(), check=False
    )


def _command(folder: Path, *command: str) -> list[str]:
    # Plumbing runs nothing that a repository may name but a monitor of its files, and what fetches.
    safe = ("-c", "core.fsmonitor=false", "-c", "protocol.allow=never")
    return ["git", "-C", str(folder), *safe, *command]


def _environ() -> dict[str, str]:
    """Without what git sets for its hooks, which would lead it to another repository.

    What a partial clone left behind is not fetched: a way to fetch is a program to run. Git before
    2.39.4 does not know GIT_NO_LAZY_FETCH, and `protocol.allow` a repository overrules with
    `protocol.ext.allow`; an empty list of protocols it can't. Nor may it put other objects in
    place of its own.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "LC_ALL": "C",
        "GIT_ALLOW_PROTOCOL": "",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_OPTIONAL_LOCKS": "0",
    }


def _said(stderr: bytes) -> str:
    return (stderr.decode(errors="replace").splitlines() or ["git failed"])[0]
