"""What `make` says while it sets everything up, with packages of this test's own."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copy

from tests.conftest import wait_for
from tests.databases import environ
from tests.servers import ROOT, Visitor, free_port


class Quiet(SimpleHTTPRequestHandler):
    """Shows a folder, which is all that an index of packages is."""

    def log_message(self, *_: object) -> None:
        pass


def wheel(folder: Path, name: str) -> str:
    """An empty package in an index in `folder`; the line that requires it."""
    path = folder / name / f"{name}-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}-1.0.dist-info/METADATA", about)
        file.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        file.writestr(f"{name}-1.0.dist-info/RECORD", "")
    return f"{name}==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


def test_setting_up_names_what_it_fetches_and_says_when_the_network_is_missing(
    tmp_path: Path,
) -> None:
    copy(ROOT / "Makefile", tmp_path)
    index = tmp_path / "index"
    (tmp_path / "requirements.txt").write_text(wheel(index, "apples") + wheel(index, "pears"))
    python = tmp_path / ".venv/bin/python"  # the tests' own: making one takes long
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "MAKE", "MFLAGS"))}
    clean |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": f"http://127.0.0.1:{free_port()}"}
    clean |= {"PIP_TARGET": str(tmp_path / "installed")}

    def install(**more: str) -> tuple[int, list[str], str]:
        done = subprocess.run(
            ["make", "install"],
            cwd=tmp_path,
            env=clean | more,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout.splitlines(), done.stderr

    begun = "Installing what Convene Keys needs into .venv …"
    code, told, failure = install()
    assert (code, told[0]) == (2, begun)
    assert "It needs the network once: is this computer connected?" in failure

    quiet = partial(Quiet, directory=index)
    with ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        code, told, failure = install(PIP_INDEX_URL=f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert (code, failure) == (0, "")
    assert told == [begun, "  fetching apples", "  fetching pears", "  installing …"]
    assert begun not in install()[1]


def test_make_run_makes_the_database_shows_the_link_and_serves_it(tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    settings = environ(f"sqlite:///{tmp_path}/new/keys.db", PORT=str(port))
    with (
        log.open("wb") as file,
        subprocess.Popen(
            ["make", "run"],
            cwd=ROOT,
            env=os.environ | settings,
            stdout=file,
            stderr=file,
            start_new_session=True,
        ) as running,
    ):
        try:
            wait_for(lambda: "Booting worker" in log.read_text() or running.poll(), seconds=60)
            link = f"http://127.0.0.1:{port}/setup?code="
            assert f"Set up Convene Keys here: {link}" in log.read_text()
            code = log.read_text().partition(link)[2].split()[0]
            with Visitor(port) as visitor:
                status, page = visitor.get(f"/setup?code={code}")
            assert (status, "Welcome" in page) == (200, True)
        finally:
            os.killpg(running.pid, signal.SIGTERM)
    assert "Shutting down: Master" in log.read_text()
