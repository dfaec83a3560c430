"""The environment (contract §3): what is taken, what stops the start, and how it is said."""

import os
import stat
import subprocess
import sys
from datetime import timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from convene_keys import config
from convene_keys.config import ConfigError, Rate, Settings, load
from tests.servers import forks

ROOT = Path(__file__).parent.parent
LONG = "x" * 32
SECRETS = {"SECRET_KEY": LONG, "KEY_PEPPER": LONG, "AUDIT_KEY": LONG}


def _load(tmp_path: Path, **environ: str) -> Settings:
    return load({**SECRETS, **environ}, tmp_path / "instance")


def test_defaults(tmp_path: Path) -> None:
    settings = load({}, tmp_path / "instance")
    assert settings.database_url == f"sqlite:///{tmp_path}/instance/convene_keys.db"
    assert settings.base_url == "http://127.0.0.1:8000"
    assert settings.trusted_proxies == 0
    assert settings.support_email == "hello@convene.markets"
    assert settings.redis_url is None
    assert settings.key_rate_limit == Rate(600, 60)
    assert settings.session_idle == timedelta(minutes=120)
    assert settings.session_max == timedelta(hours=24)
    assert settings.leak_report_keys_url is None
    assert settings.secure is False


OPTIONS = urlencode(config.POSTGRESQL_OPTIONS)
GOOD: list[tuple[str, str, str, Any]] = [
    ("DATABASE_URL", "sqlite:////tmp/a.db", "database_url", "sqlite:////tmp/a.db"),
    *(
        ("DATABASE_URL", given, "database_url", f"postgresql+psycopg://{full}")
        for given, full in {
            "postgres://u:p@h/d": f"u:p@/d?host=h&port=&{OPTIONS}",
            "postgresql://h:5433/d": f"/d?host=h&port=5433&{OPTIONS}",
            "postgresql+psycopg:///d": f"/d?host=&port=&{OPTIONS}",
            "postgresql://u:p%40@[::1]:5433/d": f"u:p%40@/d?host=::1&port=5433&{OPTIONS}",
            "postgresql://u@/d?host=/run/pg": f"u@/d?host=/run/pg&port=&{OPTIONS}",
            # Several hosts, as libpq, SQLAlchemy and people write them.
            "postgresql://u:p@a:1,b/d": f"u:p@/d?host=a,b&port=1,&{OPTIONS}",
            "postgresql://u:p@/d?host=a:1,b:2": f"u:p@/d?host=a,b&port=1,2&{OPTIONS}",
            "postgresql://u:p@/d?host=a:1&host=b:2": f"u:p@/d?host=a,b&port=1,2&{OPTIONS}",
            "postgresql://u:p@/d?host=a,b&port=1,2": f"u:p@/d?host=a,b&port=1,2&{OPTIONS}",
            "postgresql://a,b/d?port=6432": f"/d?host=a,b&port=6432&{OPTIONS}",
            "postgresql://h/d?prepare_threshold=none": (
                f"/d?host=h&port=&{OPTIONS}&prepare_threshold=none"
            ),
            "postgresql://h/d?target_session_attrs=primary&connect_timeout=9&sslmode=require": (
                "/d?host=h&port=&target_session_attrs=primary&connect_timeout=9"
                "&tcp_user_timeout=5000&keepalives_idle=5&keepalives_interval=2&sslmode=require"
            ),
        }.items()
    ),
    ("SECRET_KEY", "k" * 32, "secret_key", "k" * 32),
    ("KEY_PEPPER", "p" * 32, "key_peppers", ("p" * 32,)),
    ("KEY_PEPPER", f"{'n' * 32}, {'o' * 40}", "key_peppers", ("n" * 32, "o" * 40)),
    ("AUDIT_KEY", "a" * 32, "audit_keys", ("a" * 32,)),
    ("AUDIT_KEY", f"{'n' * 32}, {'o' * 40}", "audit_keys", ("n" * 32, "o" * 40)),
    ("BASE_URL", "https://keys.example.org", "base_url", "https://keys.example.org"),
    ("BASE_URL", "HTTPS://Keys.example.org/", "base_url", "https://keys.example.org"),
    ("BASE_URL", "http://127.0.0.1:8000", "base_url", "http://127.0.0.1:8000"),
    ("BASE_URL", "http://[::1]:8000", "base_url", "http://[::1]:8000"),
    ("PORT", "9001", "base_url", "http://127.0.0.1:9001"),
    ("TRUSTED_PROXIES", "2", "trusted_proxies", 2),
    ("SUPPORT_EMAIL", "help@example.org", "support_email", "help@example.org"),
    ("REDIS_URL", "redis://127.0.0.1:6379/0", "redis_url", "redis://127.0.0.1:6379/0"),
    ("REDIS_URL", "redis://redis", "redis_url", "redis://redis"),
    ("REDIS_URL", "redis://:pa%40ss@h:1/15", "redis_url", "redis://:pa%40ss@h:1/15"),
    ("REDIS_URL", "rediss://u:p@[::1]:6380", "redis_url", "rediss://u:p@[::1]:6380"),
    (
        "REDIS_URL",
        "rediss://h?ssl_ca_certs=/ca.pem",
        "redis_url",
        "rediss://h?ssl_ca_certs=/ca.pem",
    ),
    ("REDIS_URL", "unix:///run/redis.sock", "redis_url", "unix:///run/redis.sock"),
    ("REDIS_URL", "unix://:p@/run/redis.sock?db=2", "redis_url", "unix://:p@/run/redis.sock?db=2"),
    *(
        ("LEAK_REPORT_KEYS_URL", url, "leak_report_keys_url", url)
        for url in (
            "https://api.github.com/meta/public_keys/secret_scanning",
            "https://keys.example.org",
            "https://[2001:db8::1]:8443/keys?of=leaks",
            "http://127.0.0.1:9000/keys",
            "http://127.8.9.1/",
            "http://localhost:1",
            "http://[::1]:9000/keys",
        )
    ),
    ("KEY_RATE_LIMIT", "1/second", "key_rate_limit", Rate(1, 1)),
    ("KEY_RATE_LIMIT", "600/minute", "key_rate_limit", Rate(600, 60)),
    ("KEY_RATE_LIMIT", "36000/hour", "key_rate_limit", Rate(36_000, 3_600)),
    ("KEY_RATE_LIMIT", "9999999/day", "key_rate_limit", Rate(9_999_999, 86_400)),
    ("SESSION_IDLE_MINUTES", "1", "session_idle", timedelta(minutes=1)),
    ("SESSION_MAX_HOURS", "720", "session_max", timedelta(hours=720)),
]


@pytest.mark.parametrize(("name", "value", "attribute", "expected"), GOOD)
def test_good_value_is_taken(
    tmp_path: Path, name: str, value: str, attribute: str, expected: object
) -> None:
    assert getattr(_load(tmp_path, **{name: value}), attribute) == expected


@pytest.mark.parametrize(("name", "value", "attribute", "expected"), GOOD)
def test_good_value_is_taken_from_a_file(
    tmp_path: Path, name: str, value: str, attribute: str, expected: object
) -> None:
    file = tmp_path / "value"
    file.write_text(value + "\n")
    environ = {key: text for key, text in SECRETS.items() if key != name}
    settings = load({**environ, f"{name}_FILE": str(file)}, tmp_path / "instance")
    assert getattr(settings, attribute) == expected


BAD = [
    *(
        ("LEAK_REPORT_KEYS_URL", url)
        for url in (
            "http://api.github.com/meta/public_keys",
            "http://127.0.0.1.example.org/",
            "http://localhost.example.org",
            "http://localhost@example.org/",
            "https://user:password@example.org/keys",
            "https://",
            "https:///keys",
            "https://example.org:0/",
            "https://example.org:99999/",
            "https://example.org/keys#all",
            "https://example.org/two words",
            "https://example.org\\@other.example/",
            "ftp://example.org/keys",
            "file:///etc/passwd",
            "api.github.com",
        )
    ),
    ("DATABASE_URL", "mysql://h/d"),
    ("DATABASE_URL", "sqlite://"),
    ("DATABASE_URL", "sqlite:///"),
    ("DATABASE_URL", "sqlite:///:memory:"),
    ("DATABASE_URL", "sqlite:///file:x?mode=memory&uri=true"),
    ("DATABASE_URL", "postgresql://host"),
    ("DATABASE_URL", "postgresql://host:port/d"),
    ("DATABASE_URL", "postgresql://[::1/d"),
    ("DATABASE_URL", "postgresql:///"),
    ("DATABASE_URL", "postgresql://h/d/e"),
    ("DATABASE_URL", "postgresql://u:p/w@h/d"),
    ("DATABASE_URL", "postgresql://u:p#w@h/d"),
    ("DATABASE_URL", "postgresql://h/d#e"),
    ("DATABASE_URL", "postgresql://h:0/d"),
    ("DATABASE_URL", "postgresql://a:1,b:99999/d"),
    ("DATABASE_URL", "postgresql://a,,b/d"),
    ("DATABASE_URL", "postgresql:///d?host=a&host="),
    ("DATABASE_URL", "postgresql:///d?host=a:1,b:2&port=3"),
    ("DATABASE_URL", "postgresql:///d?host=a,b&port=1,2,3"),
    ("DATABASE_URL", "postgresql:///d?host=a,b&port=1,x"),
    ("DATABASE_URL", "postgresql:///d?host"),
    ("DATABASE_URL", "postgresql://a,b/d?target_session_attrs=read-only"),
    ("DATABASE_URL", "postgresql://a,b/d?target_session_attrs=writable"),
    ("DATABASE_URL", "postgresql://h/d?connect_timeout=soon"),
    ("DATABASE_URL", "postgresql://h/d?connect_timeout=0"),
    ("DATABASE_URL", "postgresql://h/d?ssl=true"),
    ("DATABASE_URL", "postgresql://h/d?prepare_threshold=5"),
    ("DATABASE_URL", "/var/a.db"),
    ("SECRET_KEY", "short"),
    ("KEY_PEPPER", "short"),
    ("KEY_PEPPER", LONG + ","),
    ("KEY_PEPPER", LONG + ",short"),
    ("AUDIT_KEY", "short"),
    ("AUDIT_KEY", LONG + ","),
    ("BASE_URL", "keys.example.org"),
    ("BASE_URL", "ftp://keys.example.org"),
    ("BASE_URL", "https://"),
    ("BASE_URL", "https://keys.example.org/path"),
    ("BASE_URL", "https://keys.example.org?x"),
    ("BASE_URL", "https://keys.example.org/#x"),
    ("BASE_URL", "https://me:secret@keys.example.org"),
    ("BASE_URL", "https://keys.example.org:0"),
    ("BASE_URL", "https://keys.example.org:99999"),
    ("BASE_URL", "https://keys.example.org:port"),
    ("BASE_URL", "https://[::1"),
    ("BASE_URL", "https://keys example.org"),
    ("BASE_URL", "https://keys.example.org\nX: y"),
    ("PORT", "0"),
    ("PORT", "65536"),
    ("PORT", "http"),
    ("TRUSTED_PROXIES", "-1"),
    ("TRUSTED_PROXIES", "11"),
    ("TRUSTED_PROXIES", "yes"),
    ("TRUSTED_PROXIES", "1.0"),
    ("TRUSTED_PROXIES", "١"),
    ("SUPPORT_EMAIL", "nobody"),
    ("SUPPORT_EMAIL", "a@b"),
    ("SUPPORT_EMAIL", "a b@example.org"),
    ("REDIS_URL", "127.0.0.1:6379"),
    ("REDIS_URL", "http://127.0.0.1:6379"),
    ("REDIS_URL", "redis://"),
    ("REDIS_URL", "redis:///0"),
    ("REDIS_URL", "redis://h:0"),
    ("REDIS_URL", "redis://h:65536"),
    ("REDIS_URL", "redis://h:port"),
    ("REDIS_URL", "redis://h/name"),
    ("REDIS_URL", "redis://h?socket_timeout=9"),
    ("REDIS_URL", "redis://h?ssl_ca_certs=/ca.pem"),
    ("REDIS_URL", "rediss://h?ssl_cert_reqs=none"),
    ("REDIS_URL", "redis://me:secret@h:1:2"),
    ("REDIS_URL", "redis://h\n"),
    ("REDIS_URL", "unix://redis.sock"),
    ("REDIS_URL", "unix:///run/redis.sock?db=x"),
    ("REDIS_URL", " "),
    ("KEY_RATE_LIMIT", "0/minute"),
    ("KEY_RATE_LIMIT", "-1/minute"),
    ("KEY_RATE_LIMIT", "600"),
    ("KEY_RATE_LIMIT", "600/min"),
    ("KEY_RATE_LIMIT", "600 / minute"),
    ("KEY_RATE_LIMIT", "600 per minute"),
    ("KEY_RATE_LIMIT", "10000000/minute"),
    ("KEY_RATE_LIMIT", "٦/minute"),
    ("KEY_RATE_LIMIT", "1/minute;2/hour"),
    *(
        ("MAIL_URL", url)
        for url in (
            *(
                "h",
                "h:587",
                "mail.example.org",
                "http://h",
                "smtp://",
                "smtp://:25",
                "smtp+tls://h",
            ),
            *("smtp://h:0", "smtp://h:65536", "smtp://h:port", "smtp://h/path", "smtp://h?x=1"),
            *("smtp://h#x", "smtp://user@h", "smtp://user:@h", "smtp://:pass@h", "smtp://h\n"),
            *("smtp://me:secret@h@i", "smtp://me:secret/x@h", "smtp://u:p%0d%0a@h", "smtp://a b"),
        )
    ),
    ("SESSION_IDLE_MINUTES", "0"),
    ("SESSION_IDLE_MINUTES", "99999999999999999999"),
    ("SESSION_MAX_HOURS", "721"),
    ("SESSION_MAX_HOURS", " 5"),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_stops_with_one_line_that_names_variable_problem_and_example(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(
        ConfigError, match=rf"^{name}: (must|has) .+ \(example: {name}=.+\)$"
    ) as info:
        _load(tmp_path, **{name: value})
    assert info.value.variable == name
    assert "\n" not in str(info.value)
    assert "secret@" not in str(info.value)


@pytest.mark.parametrize(
    ("value", "server"),
    [
        ("smtp://127.0.0.1", ("127.0.0.1", 587, None, None, False, False)),
        ("smtp://relay.example.org:25/", ("relay.example.org", 25, None, None, False, False)),
        ("smtp://u:p@127.0.0.1:1025", ("127.0.0.1", 1025, "u", "p", False, False)),
        ("smtp://u:p@[::1]:25", ("::1", 25, "u", "p", False, False)),
        ("smtp://u:p@LOCALHOST", ("LOCALHOST", 587, "u", "p", False, False)),
        ("smtp://u:p@mail.example.org", ("mail.example.org", 587, "u", "p", False, True)),
        ("smtp://u:p@192.0.2.1", ("192.0.2.1", 587, "u", "p", False, True)),
        ("smtp://a%40b:p%3A%2F:%25@h:2525", ("h", 2525, "a@b", "p:/:%", False, True)),
        ("smtps://u:p@h", ("h", 465, "u", "p", True, False)),
        ("smtps://h:4650", ("h", 4650, None, None, True, False)),
    ],
)
def test_mail_server_and_how_it_is_reached(
    tmp_path: Path, value: str, server: tuple[Any, ...]
) -> None:
    settings = _load(tmp_path, MAIL_URL=value, MAIL_FROM="keys@example.org")
    assert settings.mail_server == config.MailServer(*server)
    assert settings.mail_from == "keys@example.org"


def test_mail_is_off_by_default(tmp_path: Path) -> None:
    for environ in ({}, {"MAIL_FROM": "keys@example.org"}):
        settings = _load(tmp_path, **environ)
        assert (settings.mail_server, settings.mail_from) == (None, None)


@pytest.mark.parametrize("value", [None, "", "nobody", "a@b", "Keys <k@example.org>", "a,b@c.org"])
def test_mail_needs_a_sender(tmp_path: Path, value: str | None) -> None:
    environ = {} if value is None else {"MAIL_FROM": value}
    with pytest.raises(ConfigError, match=r"^MAIL_FROM: must be an email address, which MAIL_URL"):
        _load(tmp_path, MAIL_URL="smtp://h", **environ)


@pytest.mark.parametrize("name", sorted({"MAIL_URL", *(name for name, *_ in GOOD)}))
def test_value_and_file_together_are_refused(tmp_path: Path, name: str) -> None:
    environ = {name: LONG, f"{name}_FILE": str(tmp_path / "value")}
    with pytest.raises(ConfigError, match=f"^{name}: is set together with {name}_FILE .*example"):
        _load(tmp_path, **environ)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^SUPPORT_EMAIL_FILE: cannot be read: No such file"):
        _load(tmp_path, SUPPORT_EMAIL_FILE=str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"^SUPPORT_EMAIL_FILE: cannot be read: Is a directory"):
        _load(tmp_path, SUPPORT_EMAIL_FILE=str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^SUPPORT_EMAIL_FILE: cannot be read: is not text"):
        _load(tmp_path, SUPPORT_EMAIL_FILE=str(tmp_path / "binary"))


def test_empty_value_counts_as_unset_and_an_empty_file_as_bad(tmp_path: Path) -> None:
    assert _load(tmp_path, SUPPORT_EMAIL="", TRUSTED_PROXIES="").trusted_proxies == 0
    (tmp_path / "empty").write_text("")
    with pytest.raises(ConfigError, match=r"^TRUSTED_PROXIES: must be"):
        _load(tmp_path, TRUSTED_PROXIES_FILE=str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match=r"^REDIS_URL: must be"):
        _load(tmp_path, REDIS_URL_FILE=str(tmp_path / "empty"))


def test_settings_do_not_show_their_secrets(tmp_path: Path) -> None:
    secret = {"DATABASE_URL": "postgresql://u:swordfish@h/d", "REDIS_URL": "redis://:swordfish@h"}
    secret |= {"MAIL_URL": "smtp://u:swordfish@h", "MAIL_FROM": "keys@example.org"}
    settings = _load(tmp_path, **secret)
    assert LONG not in repr(settings)
    assert "swordfish" not in repr(settings)


def test_https_makes_the_settings_secure(tmp_path: Path) -> None:
    assert _load(tmp_path, BASE_URL="HTTPS://keys.example.org").secure
    assert not _load(tmp_path, BASE_URL="http://keys.example.org").secure


def test_secrets_are_made_once_and_kept_for_the_owner_only(tmp_path: Path) -> None:
    instance = tmp_path / "deep" / "instance"
    first, second = load({}, instance), load({}, instance)
    assert first == second
    assert len({first.secret_key, *first.key_peppers, *first.audit_keys}) == 3
    assert len(first.secret_key) >= config.SECRET_MIN
    assert stat.S_IMODE(instance.stat().st_mode) == 0o700
    names = sorted(path.name for path in instance.iterdir())
    assert names == ["audit_key", "key_pepper", "secret_key"]
    for path in instance.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_secrets_are_not_made_when_they_are_set(tmp_path: Path) -> None:
    _load(tmp_path)
    assert not (tmp_path / "instance").exists()


def test_audit_key_is_made_beside_a_pepper_that_is_kept(tmp_path: Path) -> None:
    (tmp_path / "key_pepper").write_text(LONG)
    made = load({"SECRET_KEY": LONG}, tmp_path).audit_keys
    assert (tmp_path / "audit_key").read_text() == made[0]
    with_pepper_set = {"SECRET_KEY": LONG, "KEY_PEPPER": LONG}
    assert load(with_pepper_set, tmp_path).audit_keys == made


def test_audit_key_is_not_made_for_one_of_several_hosts(tmp_path: Path) -> None:
    """They share a pepper that is set. Each would make a key of its own, for one log."""
    assert load({"SECRET_KEY": LONG, "KEY_PEPPER": LONG}, tmp_path / "instance").audit_keys == ()
    assert not (tmp_path / "instance").exists()


def test_loser_of_the_race_for_a_secret_takes_the_winners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(draft: Path, path: Path) -> None:
        path.write_text("w" * 40)
        link(draft, path)

    monkeypatch.setattr(os, "link", late)
    assert load({"KEY_PEPPER": LONG}, tmp_path).secret_key == "w" * 40
    assert [path.name for path in tmp_path.iterdir()] == ["secret_key"]


def _tell_secrets(instance: Path, all_here: Barrier, told: "Queue[tuple[str, ...]]") -> None:
    all_here.wait(60)
    settings = load({}, instance)
    told.put((settings.secret_key, *settings.key_peppers, *settings.audit_keys))


def test_concurrent_starts_agree_on_their_secrets(tmp_path: Path) -> None:
    all_here, told = forks.Barrier(4), forks.Queue()
    args = (tmp_path / "instance", all_here, told)
    starts = [forks.Process(target=_tell_secrets, args=args) for _ in range(4)]
    for start in starts:
        start.start()
    answers = {told.get(timeout=60) for _ in starts}
    for start in starts:
        start.join()
    assert len(answers) == 1
    assert len(answers.pop()) == 3
    assert len(list((tmp_path / "instance").iterdir())) == 3


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"short", "SECRET_KEY: must have at least 32 characters"),
        (b"\xff" * 40, "SECRET_KEY: is not set and .* cannot be used: is not text"),
    ],
)
def test_damaged_kept_secret_stops_the_start(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "secret_key").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{problem}"):
        load({"KEY_PEPPER": LONG}, tmp_path)


def test_instance_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^SECRET_KEY: is not set and .* cannot be used: Not a"):
        load({}, tmp_path / "file" / "instance")


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "DATABASE_URL": f"sqlite:///{tmp_path}/a.db",
        "SECRET_KEY": LONG,
        "KEY_PEPPER": LONG,
    }


def test_start_with_a_bad_value_ends_with_one_line(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import wsgi"],
        cwd=ROOT,
        env={**environ, "TRUSTED_PROXIES": "many"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "TRUSTED_PROXIES: must be a whole number from 0 to 10 (example: TRUSTED_PROXIES=1)\n"
    )


def test_environment_of_the_process_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, "SUPPORT_EMAIL": "env@example.org"}.items():
        monkeypatch.setenv(name, value)
    assert load(instance=tmp_path).support_email == "env@example.org"
