"""The units and the command of `deploy/`, under the booted systemd of Debian 12 and Debian 13.

`make deploytest` runs it as root, with debootstrap and systemd-container installed. It sets up
what the head of `deploy/convene-keys.service` says, in a container without a network, and exits
with 1 unless all of it holds. Debian's own files stay in `.deploytest` for the next time.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
KEPT = ROOT / ".deploytest"
RELEASES = {"bookworm": "3.11", "trixie": "3.13"}  # and their Python
PACKAGES = "systemd,systemd-sysv,dbus,python3,python3-venv"
SITE = "https://keys.example.org"
# What only systemd reads right: a shell would run the first and lose the second.
SETTINGS = f"""BASE_URL={SITE}
TRUSTED_PROXIES=1
; SUPPORT_EMAIL=wrong@example.org
SECRET_KEY="a \\"quoted\\" $HOME and $(id) key of 32 characters, or more"
KEY_PEPPER=one pepper with spaces and a # of 32 characters
SUPPORT_EMAIL='help@example.org'
"""


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no container is left behind
    for release in sys.argv[1:] or RELEASES:
        with booted(release, staged(release)) as container:
            check(container)
        print(f"{release}: all well", flush=True)


def check(container: "Container") -> None:
    header = (ROOT / "deploy" / "convene-keys.service").read_text().partition("[Unit]")[0]
    *steps, start = re.findall(r"^#   (.+)", header, re.MULTILINE)
    container.run("cp -r /staged/source /opt/convene-keys")
    for step in steps:
        container.run(step)
    container.write("/etc/convene-keys.env", SETTINGS)

    container.run(start)
    assert container.run("systemctl is-active convene-keys") == "active"
    assert container.run(FETCH.format("/readyz")) == "200 ok"
    assert "help@example.org" in container.run(FETCH.format("/login"))
    print("  the service starts and answers", flush=True)

    link = container.run("convene-keys setup-link")
    assert link.startswith(f"{SITE}/setup?"), link
    # Which the service finds good: both read the same SECRET_KEY.
    assert "Set up" in container.run(FETCH.format(link.removeprefix(SITE)))
    create = "organization create --name R --admin-name M --admin-email m@example.org"
    password = "plum basket harvest morning"
    container.run(f"echo {password} | convene-keys {create} --password-stdin")
    container.run("convene-keys keys revoke 404", code=1)
    doctor = container.run("convene-keys doctor")
    assert SITE in doctor, doctor
    assert container.run("find instance ! -user convene-keys -o -perm /077 ! -type l") == ""
    assert container.run("su -s /bin/sh -c '/usr/local/sbin/convene-keys doctor' nobody", code=1)
    print("  commands have the service's settings and user", flush=True)

    container.run("cp deploy/convene-keys-remind.* /etc/systemd/system/")
    container.run("systemctl start convene-keys-remind")
    assert "Mail is off" in container.run("journalctl --unit convene-keys-remind --output cat")
    print("  the timer's service does not fail without mail", flush=True)

    main_process = container.run("systemctl show --property MainPID --value convene-keys")
    workers = f"cat /proc/{main_process}/task/{main_process}/children"
    load = container.start("python3 tests/deploy/load.py")
    for _ in range(3):
        before = set(container.run(workers).split())
        container.run("systemctl reload convene-keys")
        end = time.monotonic() + 60
        while before & set(container.run(workers).split()):
            assert time.monotonic() < end, "a worker outlives the reload"
            time.sleep(0.2)
    told = load.communicate(timeout=60)[0].strip()
    assert re.fullmatch(r"\{'405': [0-9]+\}", told), told
    print(f"  three reloads under load lose nothing: {told}", flush=True)

    journal = container.run("journalctl --output cat")
    assert "SIGSYS" not in journal
    assert "status=31/SYS" not in journal


FETCH = (
    "python3 -c 'import sys, urllib.request as r; "
    'a = r.urlopen("http://127.0.0.1:8000" + sys.argv[1]); '
    "print(a.status, a.read().decode())' '{}'"
)


def staged(release: str) -> Path:
    """Debian's files, this tree's, and the wheels that `requirements.txt` names; made if missing."""
    folder = KEPT / release
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        options = ["--variant=minbase", f"--include={PACKAGES}"]
        # What it mounts goes with it, also when it is ended in the middle.
        command = ("unshare", "--mount", "debootstrap", *options, release)
        tell(*command, str(folder / "root"), mirror())
        (folder / "ready").touch()
    staging = folder / "staged"
    shutil.rmtree(staging, ignore_errors=True)
    listed = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in tell(*listed, cwd=ROOT).split("\0")[:-1]:
        (staging / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, staging / "source" / name)
    # Whatever this Python needs none of, theirs may.
    everything = re.sub(r" ; [^\\\n]*", "", (ROOT / "requirements.txt").read_text())
    (staging / "requirements.txt").write_text(everything)
    tell(
        *(sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"),
        *("--require-hashes", "--requirement", str(staging / "requirements.txt")),
        *("--python-version", RELEASES[release], "--dest", str(staging / "wheels")),
    )
    return folder


def mirror() -> str:
    """From where this machine has its own Debian."""
    wanted = ("Created-By: Packages", "Component: main", "Origin: Debian", "Label: Debian")
    return tell("apt-get", "indextargets", "--format", "$(REPO_URI)", *wanted).split()[0]


def tell(*command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4_000:]}{done.stderr}"
    return done.stdout


class Container:
    """A booted system, by the process id of its systemd outside."""

    def __init__(self, leader: int) -> None:
        self._inside = ["nsenter", "--all", f"--target={leader}", "--wdns=/", "env", "-i"]
        self._inside += ["PATH=/usr/local/sbin:/usr/sbin:/usr/bin", "HOME=/root", "LANG=C.UTF-8"]
        self._inside += ["PIP_NO_INDEX=1", "PIP_FIND_LINKS=/staged/wheels", "sh", "-c"]

    def start(self, command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self._inside, f"cd /opt/convene-keys 2>/dev/null; {command}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str, given: str = "", code: int = 0) -> str:
        """What it prints, once it has ended with `code`."""
        process = self.start(command)
        told = process.communicate(given, timeout=600)[0].strip()
        if process.returncode != code:
            logs = self.start("journalctl --unit 'convene-keys*' --lines 40").communicate()[0]
            raise AssertionError(f"{command}: {process.returncode}\n{told}\n{logs}")
        return told

    def write(self, path: str, text: str) -> None:
        self.run(f"cat > {path}", text)


@contextmanager
def booted(release: str, folder: Path) -> Iterator[Container]:
    """Debian's systemd as process 1; nothing that happens to its files stays."""
    command = [
        *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
        *("--volatile=overlay", "--private-network", f"--machine=convene-{release}"),
        *(f"--directory={folder / 'root'}", f"--bind-ro={folder / 'staged'}:/staged"),
    ]
    environ = os.environ | {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
    with tempfile.TemporaryFile("w+") as console:
        process = subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
        )
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            end = time.monotonic() + 60
            while True:
                console.seek(0)
                assert process.poll() is None, console.read()
                assert time.monotonic() < end, console.read()
                leader = children.read_text().split()
                if leader:
                    container = Container(int(leader[0]))
                    up = "systemctl is-system-running --wait"
                    state = container.start(up).communicate(timeout=60)[0].strip()
                    if state in ("running", "degraded"):
                        break
                time.sleep(0.2)
            yield container
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
