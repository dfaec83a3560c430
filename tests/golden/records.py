"""What is written down, by the name of its file: each a function that asks the product anew."""

import hashlib
import hmac
import json
import logging
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click

from tests.golden.world import (
    AUDIT_KEY,
    DRAFT,
    EXPIRED,
    KEY,
    LINK_CODE,
    ORPHAN,
    PASSWORD,
    PEPPER,
    READER,
    REVOKED,
    SITE,
    START,
    UNKNOWN,
    Action,
    ConfigError,
    Json,
    Outcome,
    World,
    checksummed,
    create_app,
    deliver_next,
    digest,
    in_hex,
    pepper_id,
    redact,
    tokens,
    world,
    written,
)
from tests.mailbox import Mailbox
from tests.reporters import (
    SAMPLE,
    SAMPLE_IDENTIFIER,
    SAMPLE_KEY,
    SAMPLE_SIGNATURE,
    KeyServer,
    Reporter,
    public_key,
    signed,
)

ROOT = "/api/v1/admin"
NEW_AUDIT_KEY = "a newer audit key of at least 32 characters"
OLD_PEPPER = "an older pepper of more than 32 characters"
NEW_PEPPER = "a newer pepper of at least 32 characters"
FORM = "application/x-www-form-urlencoded"


# Keys --------------------------------------------------------------------------------------------


def keys_() -> str:
    """The key's text, checksum, hint, digest and redaction, and how an old pepper goes on."""
    turns = iter(range(0, 32 * 7, 7))
    minted = tokens.mint(lambda alphabet: alphabet[next(turns) % len(alphabet)])
    vectors: list[Json] = []
    for token in (minted, KEY, checksummed("0" * 32), checksummed("z" * 32)):
        row: Json = {
            "key": token,
            "checksum": tokens.checksum(token[7:-6]),
            "hint": tokens.hint(token),
        }
        row["digest"] = {pepper: tokens.digest(token, pepper).hex() for pepper in (PEPPER, "é")}
        assert tokens.is_well_formed(token)
        assert tokens.digest(token, PEPPER) == digest(token, PEPPER)
        vectors.append(row)
    texts = (f"a {KEY} b", f"{KEY}{KEY}", f"“{KEY[:20]}…”", "fm_org_abcd", f"{KEY}x", "nothing")
    found: Json = {
        "minted": vectors,
        "pepper ids": {pepper: pepper_id(pepper) for pepper in (PEPPER, NEW_PEPPER, "é")},
        "redacted": {text: redact(text) for text in texts},
        "malformed": {t: tokens.is_well_formed(t) for t in (KEY[:-1], KEY.lower(), f"{KEY}\n", "")},
    }
    assert pepper_id(PEPPER) == pepper_id(PEPPER)
    columns = "SELECT hint, hex(digest) AS digest, pepper_id FROM api_key WHERE id = 1"
    with world(KEY_PEPPER=f"{NEW_PEPPER} ,  {PEPPER}") as w:
        found["before a newer pepper"] = w.rows(columns)
        found["under a newer pepper"] = w.ask("GET", f"{ROOT}/me", key=KEY)
        found["after it"] = w.rows(columns)
        w.stop()
        w.start(KEY_PEPPER=NEW_PEPPER)
        found["without the older one"] = [
            w.ask("GET", f"{ROOT}/me", key=key)["status"] for key in (KEY, READER)
        ]
        w.put("organization", _organization(3))
        found["made by a command"] = w.run(
            *("keys", "create", "--organization", 1, "--name", "New", "--scope", "read")
        )
        found["its row"] = in_hex(w.rows("SELECT * FROM api_key ORDER BY id DESC LIMIT 1"))
        found["listed"] = w.run("keys", "list", "--organization", 1)
        found["listed as JSON"] = w.run("keys", "list", "--organization", 1, "--json")
        (w.folder / "leaked.txt").write_text(f"nothing\nkey={found['made by a command']['stdout']}")
        found["scanned"] = w.run("keys", "scan", w.folder / "leaked.txt")
    return written(found)


# Seals -------------------------------------------------------------------------------------------

_BINARY = {"mac", "root", "previous", "signature", "entries"}
_EVENT = (
    *("at", "organization_id", "actor", "key_id", "key_name", "member_id", "member_name"),
    *("action", "target_type", "target_id", "target_name", "outcome", "ip", "user_agent"),
    *("request_id", "detail"),
)
_SEAL = (
    *("organization_id", "batch", "first_event_id", "last_event_id", "count", "root", "previous"),
    "sealed_at",
)


def _canonical(kind: str, row: Json, columns: Sequence[str]) -> str:
    values = [row[column] for column in columns]
    return json.dumps([kind, *([v.hex()] if isinstance(v, bytes) else v for v in values)])


def _vouched(w: World, *secrets: str, after: int = 0) -> Json:
    """The rows of the log and its seals with the text that is hashed, whose key is found here."""
    keys = {s: hmac.digest(s.encode(), b"convene-keys audit log", "sha256") for s in secrets}

    def told(kind: str, row: Json, columns: Sequence[str], column: str) -> Json:
        text = _canonical(kind, row, columns)
        good = [
            s for s, k in keys.items() if hmac.digest(k, text.encode(), "sha256") == row[column]
        ]
        return {**in_hex([row])[0], "hashed": text, "under": good}

    events = w.rows(f"SELECT * FROM audit_event WHERE id > {after} ORDER BY id")  # noqa: S608
    seals = w.rows("SELECT * FROM audit_seal ORDER BY last_event_id, organization_id, batch")
    return {
        "keys": {secret: key.hex() for secret, key in keys.items()},
        "events": [told("event", row, _EVENT, "mac") for row in events],
        "seals": [
            {**told("seal of a key", row, _SEAL, "signature"), "root fits": _root_fits(row)}
            for row in seals
        ],
    }


def _root_fits(seal: Json) -> bool:
    root: bytes = seal["root"]
    return hashlib.sha256(seal["entries"]).digest() == root


def seals() -> str:
    """A small log of all that acts, sealed under one key, then under a newer one."""
    found: Json = {}
    with world() as w:
        w.run("keys", "create", "--organization", 2, "--name", "Ünï “key” 🥕", "--tool", "other")
        w.ask("GET", f"{ROOT}/bookings?status=pending&limit=2", key=KEY)
        w.ask("POST", f"{ROOT}/bookings/1/decline", key=KEY, json={"reason": f"Full {KEY} — é"})
        w.ask("POST", f"{ROOT}/bookings/4/approve", key=KEY)
        w.ask("PATCH", f"{ROOT}/vendor_applications/1", key=READER, json={"status": "approved"})
        w.ask("GET", f"{ROOT}/members", key=KEY)
        w.ask("GET", f"{ROOT}/me", key=REVOKED)
        w.ask("GET", f"{ROOT}/me", key=DRAFT)
        w.ask("GET", "/auth/verify", key=READER, headers=_forwarded("POST", "/wiki?q=1"))
        found["first sealed"] = w.run("audit", "seal")
        w.ask("POST", "/login", data={"email": "member1@example.org", "password": "wrong"})
        w.ask("POST", "/admin/api_keys/1/rename", member=1, data={"name": "Claude at home"})
        w.ask("POST", "/admin/bookings/1/approve", member=1)
        w.run("keys", "revoke", 2, "--reason", "No longer needed")
        found["not sealed yet"] = w.run("audit", "verify")
        found["sealed"] = w.run("audit", "seal")
        head = w.folder / "head.jsonl"
        head.write_text("".join(found["sealed"]["stdout"]))
        found["verified"] = w.run("audit", "verify", "--head", head)
        found["log"] = _vouched(w, AUDIT_KEY, PEPPER)
        last = len(found["log"]["events"])
        w.stop()
        w.start(AUDIT_KEY=f"{NEW_AUDIT_KEY}, {AUDIT_KEY}")
        found["a newer key"] = w.run("audit", "verify")
        found["begins with it"] = w.run("audit", "seal")
        w.ask("GET", f"{ROOT}/me", key=KEY)
        found["goes on under it"] = w.run("audit", "seal")
        found["verified under both"] = w.run("audit", "verify", "--head", head)
        found["log under both"] = _vouched(w, NEW_AUDIT_KEY, AUDIT_KEY, after=last)
        w.stop()
        w.start(AUDIT_KEY=NEW_AUDIT_KEY)
        found["without the older one"] = w.run("audit", "verify", "--organization", 1)
    return written(found)


def sealed_before() -> str:
    """The log from before there was an AUDIT_KEY, on the command line of today."""
    found: Json = {}
    before = json.loads(
        (Path(__file__).parent.parent / "sealed_before_audit_key.json").read_bytes()
    )
    peppers = {"KEY_PEPPER": f"{PEPPER},{OLD_PEPPER}"}
    with world(furnished=False, **peppers, AUDIT_KEY="") as w:
        w.put("organization", _organization(1), _organization(2))
        for table in ("audit_event", "audit_seal"):
            w.put(table, *({n: _of_then(n, v) for n, v in row.items()} for row in before[table]))
        found["as then"] = w.run("audit", "verify")
        found["with a key"] = []
        w.stop()
        w.start(**peppers, AUDIT_KEY=NEW_AUDIT_KEY)
        for command in ("verify", "seal", "verify"):
            found["with a key"].append(w.run("audit", command))
        found["seals"] = [
            row for row in _vouched(w, NEW_AUDIT_KEY, PEPPER)["seals"] if row["under"]
        ]
    return written(found)


def _of_then(name: str, value: Any) -> Any:
    if name in ("at", "sealed_at"):
        return value.replace("T", " ").removesuffix("+00:00")
    return bytes.fromhex(value) if name in _BINARY else value


# Links, sign-ins ---------------------------------------------------------------------------------


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def _logged() -> Iterator[list[str]]:
    """The warnings of the product, as a host reads them."""
    handler, logger, was = _Lines(), logging.getLogger("convene_keys"), logging.root.manager.disable
    logger.addHandler(handler)
    logging.disable(logging.NOTSET)
    try:
        yield handler.lines
    finally:
        logging.disable(was)
        logger.removeHandler(handler)


def _brief(answer: Json) -> Json:
    """Without a page's text."""
    return {name: value for name, value in answer.items() if name != "lines"}


def links() -> str:
    """The set-up code, sign-in links, sessions and cookies, and what the log says of a refusal."""
    found: Json = {}
    with world(furnished=False) as w:
        found["set-up link"] = w.run("setup-link")
        code = found["set-up link"]["stdout"][0].strip().partition("code=")[2]
        found["opened"] = w.ask("GET", f"/setup?code={code}")["status"]
        found["not opened"] = w.ask("GET", f"/setup?code={code[:-1]}x")["status"]
        w.stop()
        w.start(KEY_PEPPER=f"{NEW_PEPPER},{PEPPER}")
        found["under a newer pepper"] = w.run("setup-link")
        w.put("organization", _organization(1))
        found["once there is an organization"] = w.run("setup-link")
    with world() as w:
        found["sign-in link of then"] = w.ask("GET", f"/welcome?code={LINK_CODE}")["status"]
        found["no link"] = w.ask("GET", f"/welcome?code={LINK_CODE}x")["status"]
        found["sign-in link"] = w.run("member", "link", "Member1@example.org")
        code = found["sign-in link"]["stdout"][0].strip().partition("code=")[2]
        found["digest of its code"] = hashlib.sha256(code.encode()).hexdigest()
        found["its row"] = in_hex(w.rows("SELECT * FROM sign_in_link ORDER BY id DESC LIMIT 1"))
        found["opened by it"] = w.ask("GET", f"/welcome?code={code}")["status"]
        found["session of then"] = [
            w.ask("GET", "/admin/api_keys", member=member)["status"] for member in (1, 3)
        ]
        found["nobody signed in"] = _brief(w.ask("GET", "/admin/api_keys?status=all"))
        form = {"email": "MEMBER1@example.org", "password": PASSWORD, "next": "/admin/team"}
        answer = w.ask("POST", "/login", data=form)
        cookie = answer["headers"]["Set-Cookie"]
        answer["headers"]["Set-Cookie"] = re.sub("=[^;]+;", "=SIGNED;", cookie, count=1)
        found["signed in under a password of then"] = _brief(answer)
        made = "SELECT * FROM sign_in_session ORDER BY id DESC LIMIT 1"
        found["its session"] = in_hex(w.rows(made))
        with _logged() as lines:
            form["password"] = "wrong"
            found["refused"] = w.ask("POST", "/login", data=form)["status"]
            found["not allowed"] = w.ask("GET", "/admin/settings/billing", member=3)["status"]
        found["logged"] = lines
        found["attempts"] = in_hex(w.rows("SELECT * FROM sign_in_attempt"))
        leave = w.ask("POST", "/logout", member=1)
        leave["headers"].pop("Set-Cookie")
        found["signed out"] = _brief(leave)
    return written(found)


# The audit log, taken away -----------------------------------------------------------------------


def exports() -> str:
    """CSV and JSON lines of a fixed log, in the browser and on the command line."""
    found: Json = {}
    with world() as w:
        rows: tuple[tuple[str, Json], ...] = (
            ("plain", {}),
            ("=SUM(A1)", {"actor": "key", "key_id": 1, "key_name": "-Claude “x”"}),
            (
                'quo"ted, and\nlined',
                {"actor": "member", "member_id": 1, "member_name": "@Maya"},
            ),
            ("naïve 🥕 \u2028", {"outcome": "denied", "ip": "2001:db8::7"}),
            ("+1\t", {"outcome": "failed", "user_agent": "\tcurl/8 ’", "target_id": None}),
            ("＝full width", {"detail": {"é": [1.5, None, True], "n": {"a": "\u2028"}}}),
            ("of a draft", {"organization_id": 2}),
        )
        for number, (name, more) in enumerate(rows, 1):
            row: Json = {
                "at": f"2026-11-{16 + number} 09:30:2{number}.{number:06}",
                "organization_id": 1,
            }
            row |= {"actor": "system", "action": "booking.approved", "target_type": "booking"}
            row |= {"target_id": str(number), "target_name": name, "outcome": "ok"}
            row |= {"request_id": f"{number:016x}", "detail": {}, "mac": bytes([number]) * 32}
            w.put("audit_event", {**row, **more})
        for ending in ("csv", "jsonl"):
            for query in (
                "",
                "?key=1",
                "?member=1&outcome=ok",
                "?since=2026-11-18&until=2026-11-20",
                "?q=booking+4",
                "?action=key.created",
            ):
                address = f"/admin/audit_log.{ending}{query}"
                found[address] = w.ask("GET", address, member=1)
                found[address]["headers"].pop("Set-Cookie", None)
            for options in ([], ["--key", 1], ["--since", "2026-11-18", "--until", "2026-11-20"]):
                command = ["audit", "export", "--organization", 1, *options, "--format", ending]
                told = w.run(*command)
                found[told["command"]] = told
    return written(found)


# What machines are told --------------------------------------------------------------------------


def openapi() -> str:
    with world(furnished=False) as w:
        return written(w.ask("GET", "/api/openapi.json"))


def _forwarded(method: str, uri: str) -> dict[str, str]:
    return {"X-Forwarded-Method": method, "X-Forwarded-Uri": uri}


READS = (
    "/me",
    "/dashboard",
    "/markets",
    "/markets?limit=1",
    "/markets/2",
    "/market_dates",
    "/market_dates?market_id=1&status=published&since=2026-11-24",
    "/market_dates?limit=2",
    "/market_dates/3",
    "/vendors",
    "/vendors?q=%C3%B6rg",
    "/vendors/1",
    "/vendor_applications",
    "/vendor_applications?status=approved&market_id=1&q=farm",
    "/vendor_applications?limit=3",
    "/vendor_applications/4",
    "/bookings",
    "/bookings?status=declined&market_date_id=2&vendor_id=1&date=2026-12-05",
    "/bookings?limit=2",
    "/bookings/2",
    "/audit_events?limit=2",
    "/audit_events?action=booking.listed",
)
WRITES: tuple[tuple[str, str, Json | None], ...] = (
    ("PATCH", "/vendor_applications/1", {"status": "waitlisted", "note": "Next year — “é”"}),
    ("PATCH", "/vendor_applications/1", {"status": "approved"}),
    ("POST", "/vendor_applications/2/remind", None),
    ("POST", "/bookings/1/decline", {"reason": "Full 🥕"}),
    ("POST", "/bookings/1/approve", None),
    ("POST", "/bookings/1/approve", None),
    ("POST", "/bookings/1/mark_paid", None),
    ("POST", "/bookings/1/cancel", {"reason": "Rain"}),
)


def rest() -> str:
    """Each read, each kind of write, and what the database and the log hold after them."""
    found: Json = {}
    with world() as w:
        for path in READS:
            found[f"GET {path}"] = w.ask("GET", ROOT + path, key=READER)
        for number, (method, path, body) in enumerate(WRITES, 1):
            more: Json = {} if body is None else {"json": body}
            found[f"{number}. {method} {path}"] = w.ask(method, ROOT + path, key=KEY, **more)
        for table in ("booking", "vendor_application"):
            found[f"{table} 1"] = w.rows(f"SELECT * FROM {table} WHERE id = 1")  # noqa: S608
        told = (
            "SELECT action, target_type, target_id, target_name, outcome, detail FROM audit_event"
        )
        found["events"] = w.rows(f"{told} WHERE key_id = 1 ORDER BY id")
        found["undone"] = _undo(w)
        found["X-API-Key"] = w.ask("GET", f"{ROOT}/me", headers={"X-API-Key": KEY})
        found["HEAD"] = w.ask("HEAD", f"{ROOT}/me", key=KEY)
        found["POST /me/revoke"] = w.ask("POST", f"{ROOT}/me/revoke", key=KEY)
        found["and then"] = w.ask("GET", f"{ROOT}/me", key=KEY)
    return written(found)


def _undo(w: World) -> Json:
    """The addresses by which a member takes back what a key changed, and the event of that."""
    w.ask("POST", "/admin/api_keys/1/leak", member=1, data={"where": "a forum"})
    last = w.rows("SELECT max(id) AS id FROM audit_event WHERE action = 'application.updated'")
    address = f"/admin/api_keys/1/leak/undo/{last[0]['id']}"
    answer = _brief(w.ask("POST", address, member=1))
    answer["headers"].pop("Set-Cookie", None)
    told = "SELECT action, target_type, target_id, target_name, outcome, detail FROM audit_event"
    events = w.rows(f"{told} WHERE action LIKE '%.restored' OR action LIKE 'key.%' ORDER BY id")
    w.sql("UPDATE api_key SET revoked_at = NULL, released_at = NULL, leaked_at = NULL WHERE id = 1")
    return {address: answer, "events": events}


def verify() -> str:
    """`GET /auth/verify`, with each header that it answers."""
    with world() as w:
        asked: dict[str, Json] = {
            "read": {"key": READER, "headers": _forwarded("GET", "/wiki/Page?q=1")},
            "write with a reading key": {"key": READER, "headers": _forwarded("DELETE", "/wiki")},
            "write": {"key": KEY, "headers": _forwarded("DELETE", "/wiki/%C3%A9")},
            "nginx": {
                "key": KEY,
                "headers": {"X-Original-Method": "OPTIONS", "X-Original-URI": "/"},
            },
            "nothing told": {"key": KEY},
            "no method": {"key": KEY, "headers": _forwarded("get", "/")},
            "no path": {"key": KEY, "headers": _forwarded("GET", "wiki")},
            "key in the address": {"key": KEY, "headers": _forwarded("GET", f"/?k={KEY}")},
            "no key": {"headers": _forwarded("GET", "/")},
            "revoked": {"key": REVOKED, "headers": _forwarded("GET", "/")},
            "draft": {"key": DRAFT, "headers": _forwarded("GET", "/")},
        }
        found: Json = {name: w.ask("GET", "/auth/verify", **how) for name, how in asked.items()}
        told = "SELECT target_type, target_id, target_name, outcome, detail FROM audit_event"
        found["events"] = w.rows(f"{told} WHERE action = 'proxy.request' ORDER BY id")
    return written(found)


def problems() -> str:
    """One of each code at least, with its headers."""
    found: Json = {}
    approve = f"{ROOT}/bookings/1/approve"
    with world() as w:
        asked: dict[str, tuple[str, str, Json]] = {
            "no JSON": ("POST", approve, {"key": KEY, "data": "{", "content_type": "application/json"}),
            "no object": ("POST", approve, {"key": KEY, "json": [1]}),
            "input in the address": ("POST", f"{approve}?a=1", {"key": KEY}),
            "invalid_cursor": ("GET", f"{ROOT}/bookings?cursor=next", {"key": KEY}),
            "invalid_cursor of events": ("GET", f"{ROOT}/audit_events?before=99", {"key": KEY}),
            "key_outside_header": ("GET", f"{ROOT}/me?key={UNKNOWN}", {}),
            "key_outside_header of a form": (
                "POST", "/login", {"data": f"email={UNKNOWN}", "content_type": FORM},
            ),
            "key_missing": ("GET", f"{ROOT}/me", {}),
            "key_unknown, no key": ("GET", f"{ROOT}/me", {"key": "fm_org_x"}),
            "key_unknown": ("GET", f"{ROOT}/me", {"key": UNKNOWN}),
            "key_revoked": ("GET", f"{ROOT}/me", {"key": REVOKED}),
            "key_expired": ("GET", f"{ROOT}/me", {"key": EXPIRED}),
            "scope_required": ("POST", approve, {"key": READER}),
            "off_limits": ("GET", f"{ROOT}/api_keys/1", {"key": KEY}),
            "off_limits, a page": ("GET", "/admin/api_keys", {"key": KEY}),
            "creator_inactive": ("GET", f"{ROOT}/me", {"key": ORPHAN}),
            "organization_draft": ("GET", f"{ROOT}/me", {"key": DRAFT}),
            "not_found": ("GET", f"{ROOT}/bookings/99", {"key": KEY}),
            "not_found, no address": ("GET", f"{ROOT}/orders", {"key": KEY}),
            "not_found, sign-in": ("GET", "/.well-known/oauth-protected-resource", {}),
            "not_found, sign-in with a key": ("POST", "/register", {"key": KEY}),
            "method_not_allowed": ("DELETE", f"{ROOT}/bookings/1", {"key": KEY}),
            "method_not_allowed, revoke": ("GET", f"{ROOT}/me/revoke", {"key": KEY}),
            "conflict": ("POST", f"{ROOT}/bookings/4/approve", {"key": KEY}),
            "conflict, not approved": ("POST", f"{ROOT}/bookings/1/mark_paid", {"key": KEY}),
            "reminded": ("POST", f"{ROOT}/vendor_applications/1/remind", {"key": KEY}),
            "reminded_recently": ("POST", f"{ROOT}/vendor_applications/1/remind", {"key": KEY}),
            "too_large": (
                "POST", approve, {"key": KEY, "data": b"x" * 32_769, "content_type": "application/json"},
            ),
            "unsupported_media_type": (
                "POST", approve, {"key": KEY, "data": "{}", "content_type": "text/plain"},
            ),
            "invalid": ("GET", f"{ROOT}/bookings?limit=500&status=x&more=1", {"key": KEY}),
            "invalid body": (
                "PATCH", f"{ROOT}/vendor_applications/1", {"key": KEY, "json": {"status": 1, "x": 2}},
            ),
            "invalid, twice": ("GET", f"{ROOT}/bookings?limit=5&limit=6", {"key": KEY}),
            "forwarded_invalid": ("GET", "/auth/verify", {"key": KEY}),
            "other_origin": (
                "POST", "/mcp", {"key": KEY, "headers": {"Origin": "https://example.com"}, "json": {}},
            ),
            "no reports are taken": ("POST", "/api/v1/leaks", {"json": []}),
        }  # fmt: skip
        for name, (method, path, how) in asked.items():
            found[name] = _short(w.ask(method, path, **how))
        w.sql("UPDATE organization SET timezone = 'Nowhere/None' WHERE id = 1")
        found["internal"] = w.ask("GET", f"{ROOT}/dashboard", key=KEY)
        w.sql("ALTER TABLE api_key RENAME TO away")
        found["unavailable"] = w.ask("GET", f"{ROOT}/me", key=KEY)
        w.still = True  # within one minute
        tries = [w.ask("GET", f"{ROOT}/me") for _ in range(61)]
        found["rate_limited, a network"] = tries[-1]
        found["tries until then"] = [one["status"] for one in tries].index(tries[-1]["status"])
    with world(KEY_RATE_LIMIT="2/hour") as w:
        calls = [w.ask("GET", f"{ROOT}/me", key=KEY) for _ in range(3)]
        found["rate_limited"] = [calls[0]["headers"], *calls[2:]]
    found["leaks"] = _leaks()
    with world(furnished=False) as w:
        page = "".join(w.ask("GET", "/docs/api")["lines"])
    told = re.findall(r'<dt id="(\w+)">(\d+) <code>', page)
    found["codes of the reference"] = {code: status for code, status in told}
    found["of them without an example"] = [
        code for code, _ in told if f'"code": "{code}"' not in written(found)
    ]
    return written(found)


def _short(answer: Json) -> Json:
    """Of a page, only how it begins to tell what is wrong."""
    if "lines" in answer:
        title = re.search("<title>(.*?)</title>", "".join(answer.pop("lines")), re.DOTALL)
        answer["title"] = title[1] if title else None
    return answer


def _leaks() -> Json:
    """What a reporter is told; with GitHub's own sample, and with a real key."""
    ours, found = Reporter("ours"), {}
    body = json.dumps(
        [
            {
                "token": KEY,
                "type": "convene_key",
                "url": "https://example.com/x",
                "source": "commit",
            },
            {"token": UNKNOWN, "type": "convene_key", "url": "", "source": "content"},
        ]
    ).encode()
    with KeyServer() as server:
        server.tell(public_key(SAMPLE_IDENTIFIER, SAMPLE_KEY), ours.public)
        with world(LEAK_REPORT_KEYS_URL=server.url) as w:
            sample = signed(SAMPLE_IDENTIFIER, SAMPLE_SIGNATURE)
            for name, headers, data in (
                ("sample", sample, SAMPLE),
                ("signature_missing", {}, SAMPLE),
                ("signature_key_unknown", signed("nobody", SAMPLE_SIGNATURE), SAMPLE),
                ("signature_invalid", sample, SAMPLE + b" "),
                ("invalid", ours.headers(b'[{"token":1}]'), b'[{"token":1}]'),
                ("real", ours.headers(body), body),
                ("real, again", ours.headers(body), body),
            ):
                found[name] = w.ask(
                    "POST",
                    "/api/v1/leaks",
                    headers=headers,
                    data=data,
                    content_type="application/json",
                )
            told = "SELECT actor, action, target_name, outcome, detail FROM audit_event ORDER BY id"
            found["events"] = w.rows(told)  # type: ignore[assignment]
    return found


# Assistants --------------------------------------------------------------------------------------

HANDSHAKES, STATELESS = ("2025-06-18", "2025-11-25"), "2026-07-28"
_META = "io.modelcontextprotocol"
CLIENT = {"name": "golden", "version": "1"}


def _message(method: str, version: str, params: Json) -> Json:
    """The request of a method in a revision's own form."""
    headers = {"MCP-Protocol-Version": version}
    if version == STATELESS:
        meta = {f"{_META}/protocolVersion": version, f"{_META}/clientCapabilities": {}}
        params = {**params, "_meta": {**meta, f"{_META}/clientInfo": CLIENT}}
        headers["Mcp-Method"] = method
        name = params.get("name", params.get("uri"))
        if name is not None:
            headers["Mcp-Name"] = name
    return {
        "headers": headers,
        "json": {"jsonrpc": "2.0", "id": 7, "method": method, "params": params},
    }


def mcp() -> str:
    """What an assistant is told: greeting, tools by scope, resources, prompts, calls and errors."""
    found: Json = {}
    with world() as w:

        def say(method: str, version: str, key: str = KEY, **params: Any) -> Json:
            return w.ask("POST", "/mcp", key=key, **_message(method, version, params))

        for version in HANDSHAKES:
            hello: Json = {"protocolVersion": version, "capabilities": {}, "clientInfo": CLIENT}
            found[f"initialize {version}"] = say("initialize", version, **hello)
        hello = {"protocolVersion": "1999-01-01", "capabilities": {}, "clientInfo": CLIENT}
        found["initialize 1999-01-01"] = say("initialize", HANDSHAKES[1], **hello)
        found[f"server/discover {STATELESS}"] = say("server/discover", STATELESS)
        tools: Json = {}
        for version in (*HANDSHAKES, STATELESS):
            for scope, key in (("read", READER), ("read_write", KEY)):
                answer = say("tools/list", version, key)
                listed = answer["json"]["result"].pop("tools")
                same = next((name for name, known in tools.items() if known == listed), None)
                name = f"{scope} {version}"
                if same is None:
                    tools[name] = listed
                found[f"tools/list {name}"] = {**answer, "tools": f"as {same or name}"}
            for method in ("ping", "resources/list", "resources/templates/list", "prompts/list"):
                found[f"{method} {version}"] = say(method, version)
            for prompt in ("pending_today", "prepare_saturday"):
                found[f"prompts/get {prompt} {version}"] = say("prompts/get", version, name=prompt)
            for uri in ("convene://dashboard", "convene://pending"):
                found[f"resources/read {uri} {version}"] = say("resources/read", version, uri=uri)
            found[f"tools/call {version}"] = say(
                "tools/call", version, name="get_booking", arguments={"id": 2}
            )
            for name, key, tool, arguments in (
                ("changes", KEY, "decline_booking", {"id": 1, "reason": "Full — é"}),
                ("scope_required", READER, "approve_booking", {"id": 1}),
                ("not_found", KEY, "get_booking", {"id": 99}),
                ("invalid", KEY, "get_booking", {"id": "2", "more": True}),
                ("conflict", KEY, "approve_booking", {"id": 4}),
                ("creator_inactive", ORPHAN, "whoami", {}),
                ("key_revoked", REVOKED, "whoami", {}),
                ("unknown tool", KEY, "drop_tables", {}),
            ):
                found[f"tools/call, {name} {version}"] = say(
                    "tools/call", version, key, name=tool, arguments=arguments
                )
            found[f"unknown resource {version}"] = say("resources/read", version, uri="convene://x")
            found[f"unknown prompt {version}"] = say("prompts/get", version, name="x")
            found[f"unknown method {version}"] = say("tools/drop", version)
            found[f"method not offered {version}"] = say(
                "completion/complete",
                version,
                ref={"type": "ref/prompt", "name": "x"},
                argument={"name": "a", "value": "b"},
            )
            found[f"bad parameters {version}"] = say("tools/call", version, name=5)
        found["tools"] = tools
        good = _message("ping", HANDSHAKES[1], {})
        found["no version"] = w.ask("POST", "/mcp", key=KEY, json=good["json"])
        found["notification"] = w.ask(
            "POST", "/mcp", key=KEY, json={"jsonrpc": "2.0", "method": "notifications/initialized"}
        )
        found["no key"] = w.ask("POST", "/mcp", **good)
        found["unknown key"] = w.ask("POST", "/mcp", key=UNKNOWN, **good)
        found["other_origin"] = w.ask(
            "POST", "/mcp", key=KEY, json=good["json"], headers={"Origin": "https://example.com"}
        )
        found["unknown version"] = w.ask(
            "POST",
            "/mcp",
            key=KEY,
            json=good["json"],
            headers={"MCP-Protocol-Version": "2030-01-01"},
        )
        later = _message("ping", STATELESS, {})
        later["headers"]["MCP-Protocol-Version"] = "2030-01-01"
        later["json"]["params"]["_meta"][f"{_META}/protocolVersion"] = "2030-01-01"
        found["unknown version, said twice"] = w.ask("POST", "/mcp", key=KEY, **later)
        apart = _message("tools/list", STATELESS, {})
        apart["headers"]["Mcp-Method"] = "ping"
        found["headers say otherwise"] = w.ask("POST", "/mcp", key=KEY, **apart)
        for name, body in (("no JSON", "{"), ("no request", "[]"), ("a batch", "[{}]")):
            found[name] = w.ask("POST", "/mcp", key=KEY, data=body, content_type="application/json")
        found["no JSON's type"] = w.ask(
            "POST", "/mcp", key=KEY, data="{}", content_type="text/plain"
        )
        found["GET"] = w.ask("GET", "/mcp", key=KEY)
        told = "SELECT action, target_name, outcome, detail FROM audit_event ORDER BY id"
        found["events"] = w.rows(told)
    with world(KEY_RATE_LIMIT="1/hour") as w:
        found["rate_limited"] = [w.ask("POST", "/mcp", key=KEY, **good) for _ in range(2)][1]
    with world() as w:
        w.sql("ALTER TABLE api_key RENAME TO away")
        found["unavailable"] = w.ask("POST", "/mcp", key=KEY, **good)
    return written(found)


# Headers -----------------------------------------------------------------------------------------


def headers() -> str:
    """All headers of an answer of each kind, with and without TLS."""
    found: Json = {}
    for site in (SITE, "http://127.0.0.1:8000"):
        with world(BASE_URL=site) as w:
            client = w.app.test_client()
            for path in (
                "/login",
                "/healthz",
                "/readyz",
                "/api/openapi.json",
                f"{ROOT}/me",
                "/gone",
            ):
                response = client.get(path, base_url=site, buffered=True)
                told = [
                    [n, v]
                    for n, v in response.headers.items()
                    if n not in ("Content-Length", "Date")  # the one by the page, the other by now
                ]
                for pair in told:
                    if pair[0] == "X-Request-Id":
                        pair[1] = re.sub("[0-9a-f]{16}", "REQUEST ID", pair[1])
                    if pair[0] == "Set-Cookie":
                        pair[1] = re.sub("=[^;]+;", "=SIGNED;", pair[1], count=1)
                found[f"{site} {path}"] = [response.status, *told]
    return written(found)


# Names -------------------------------------------------------------------------------------------


def schema() -> str:
    """What the migrations make, each line by itself and all of it in a fixed order."""
    with world(furnished=False) as w, closing(sqlite3.connect(w.path)) as connection:
        found = []
        tables = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        for (table,) in connection.execute(tables).fetchall():
            found.append(f"table {table}")
            for _, name, kind, needed, default, key in connection.execute(
                f"PRAGMA table_info({table})"
            ):
                found.append(f"  {name} {kind} needed={needed} default={default} key={key}")
            (sql,) = connection.execute(
                "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", [table]
            ).fetchone()
            rules = re.findall(
                r"CONSTRAINT .*?(?=,? *CONSTRAINT|,\s*\n|\n\)|, [a-z_]+ [A-Z]|$)", sql
            )
            found += sorted(f"  {' '.join(rule.split())}" for rule in rules)
        others = (
            "SELECT sql FROM sqlite_master WHERE type <> 'table' AND sql NOT NULL ORDER BY name"
        )
        found += [" ".join(sql.split()) for (sql,) in connection.execute(others)]
        found += [
            f"revision {row}" for (row,) in connection.execute("SELECT * FROM alembic_version")
        ]
    return "\n".join(found) + "\n"


class _Asked(dict[str, str]):
    """An environment that keeps what it was asked for."""

    def __init__(self, given: dict[str, str]) -> None:
        super().__init__(given)
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return super().__getitem__(name)


WRONG = (
    *(("DATABASE_URL", value) for value in ("sqlite://", "mysql://x/y", "sqlite:///:memory:")),
    *(("SECRET_KEY", "short"), ("KEY_PEPPER", "short"), ("KEY_PEPPER", f"{PEPPER},")),
    *(("AUDIT_KEY", "short"), ("BASE_URL", "keys.example.org"), ("PORT", "0")),
    *(("TRUSTED_PROXIES", "11"), ("SUPPORT_EMAIL", "nobody"), ("REDIS_URL", "http://x")),
    *(("KEY_RATE_LIMIT", "600"), ("KEY_RATE_LIMIT", "0/minute"), ("SESSION_IDLE_MINUTES", "0")),
    *(("SESSION_MAX_HOURS", "x"), ("LEAK_REPORT_KEYS_URL", "http://example.org/keys")),
    *(("MAIL_URL", "mail.example.org"), ("SECRET_KEY_FILE", "/nowhere/secret")),
)


def settings() -> str:
    """The environment variables that are read, and the line with which each bad value is refused."""
    found: Json = {}
    with world(furnished=False) as w:
        given = {
            "DATABASE_URL": f"sqlite:///{w.path}",
            "SECRET_KEY": "s" * 32,
            "AUDIT_KEY": "a" * 32,
        }
        given |= {
            "KEY_PEPPER": PEPPER,
            "MAIL_URL": "smtp://127.0.0.1:25",
            "MAIL_FROM": "a@b.example",
        }
        asked = _Asked(given)
        create_app(asked, commands=False)
        found["read"] = sorted(asked.names)
        found["refused"] = []
        for name, value in (*WRONG, ("MAIL_FROM", "nobody")):
            environment = {**given, name: value}
            if name != "MAIL_FROM" and name != "MAIL_URL":
                environment.pop("MAIL_URL")
            if name.endswith("_FILE"):
                environment.pop(name.removesuffix("_FILE"))
            try:
                create_app(environment, commands=False)
            except ConfigError as error:
                found["refused"].append([f"{name}={value}", str(error)])
    return written(found)


def routes() -> str:
    """Each address and its methods."""
    with world(furnished=False, LEAK_REPORT_KEYS_URL="https://example.org/keys") as w:
        rules = [
            f"{rule.rule} {' '.join(sorted(rule.methods or ()))}"
            for rule in w.app.url_map.iter_rules()
        ]
    return "\n".join(sorted(rules)) + "\n"


OF_FLASK = {"db", "routes", "run", "shell"}


def commands() -> str:
    """The tree of commands, with the options of each."""
    with world(furnished=False) as w:
        return written(
            {
                name: _command(command)
                for name, command in sorted(w.app.cli.commands.items())
                if name not in OF_FLASK
            }
        )


def _command(command: click.Command) -> Json:
    told: Json = {"help": command.help, "takes": [_parameter(one) for one in command.params]}
    if isinstance(command, click.Group):
        told["commands"] = {n: _command(one) for n, one in sorted(command.commands.items())}
    return told


def _parameter(one: click.Parameter) -> Json:
    told: Json = {"names": [*one.opts, *one.secondary_opts], "required": one.required}
    told |= {"type": one.type.name, "many": one.multiple or one.nargs != 1}
    choices = getattr(one.type, "choices", None)
    if choices is not None:  # time zones come and go
        told["choices"] = list(choices) if len(choices) < 20 else "many"
    if isinstance(one, click.Option):
        told |= {"help": one.help, "flag": one.is_flag}
        told["default"] = one.default if isinstance(one.default, str | int) else None
    return told


def actions() -> str:
    """The vocabulary of the audit log, each action with its sentences."""
    return written(
        {
            action.value: {
                "label": action.label,
                **{outcome.value: action.sentence(outcome) for outcome in Outcome},
            }
            for action in Action
        }
    )


# Mail --------------------------------------------------------------------------------------------


def mail() -> str:
    """A mail of each kind, as it waits in the database and as it leaves."""
    with Mailbox() as box, KeyServer() as server:
        reporter = Reporter("ours")
        server.tell(reporter.public)
        more: Json = {"MAIL_URL": box.url, "MAIL_FROM": "keys@example.org"}
        with world(**more, LEAK_REPORT_KEYS_URL=server.url) as w:
            password = f"{PASSWORD}, twice\n"
            new = ["--organization", 1, "--name", "http://x.example Noor", "--password-stdin"]
            w.run("keys", "create", "--organization", 1, "--name", "By command", "--scope", "read")
            form = {"name": "By www.x.example", "tool": "claude", "scope": "read_write"}
            w.ask("POST", "/admin/api_keys", member=1, data={**form, "expires_in_days": "90"})
            w.ask("POST", "/admin/api_keys/2/revoke", member=1, data={"reason": "Old"})
            w.run("keys", "revoke", 7)
            body = json.dumps([{"token": KEY, "type": "k", "url": "https://e.example/x"}]).encode()
            leak: Json = {"data": body, "content_type": "application/json"}
            w.ask("POST", "/api/v1/leaks", headers=reporter.headers(body), **leak)
            sign_in = {"email": "member1@example.org", "password": PASSWORD}
            w.ask("POST", "/login", data=sign_in)
            w.run(
                "member",
                "create",
                *new,
                "--email",
                "n@example.org",
                "--role",
                "viewer",
                stdin=password,
            )
            person = {"name": "Olu", "email": "olu@example.org", "role": "manager"}
            w.ask("POST", "/admin/team", member=1, data=person)
            w.run("member", "link", "member1@example.org")
            w.ask("POST", f"/welcome?code={LINK_CODE}", data={"password": password.strip()})
            w.run("keys", "remind")
            found: Json = {
                "waiting": [
                    {
                        n: v.splitlines(keepends=True) if n in ("text", "html") else v
                        for n, v in r.items()
                    }
                    for r in w.rows("SELECT * FROM mail ORDER BY id")
                ]
            }
            w.sql("UPDATE mail SET due_at = NULL WHERE kind NOT IN ('key_leaked', 'weekly')")
            w.turn += 3600
            with w.app.app_context():
                while deliver_next():
                    pass
                w.app.extensions["sqlalchemy"].session.remove()
            found["sent"] = [
                [[n, re.sub('boundary=".*"', 'boundary="…"', str(v))] for n, v in message.items()]
                for message in box.taken
            ]
    return written(found)


def sample_data() -> str:
    """The season to look around in: how much of it there is, and a digest of each table."""
    with world(furnished=False) as w:
        w.put("organization", _organization(1))
        found: Json = {"printed": w.run("sample-data", "--organization", 1)}
        for table in ("market", "market_date", "vendor", "vendor_application", "booking"):
            rows = w.rows(f"SELECT * FROM {table} ORDER BY id")  # noqa: S608
            digest_of = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
            found[table] = {"first": rows[0], "last": rows[-1], "sha256": digest_of}
    return written(found)


def _organization(number: int) -> Json:
    row = {"id": number, "name": f"Market {number}", "slug": f"m{number}", "status": "live"}
    return {**row, "timezone": "UTC", "plan": "free", "created_at": START}


RECORDS: dict[str, Callable[[], str]] = {
    "actions.json": actions,
    "commands.json": commands,
    "exports.json": exports,
    "headers.json": headers,
    "keys.json": keys_,
    "links.json": links,
    "mail.json": mail,
    "mcp.json": mcp,
    "openapi.json": openapi,
    "problems.json": problems,
    "rest.json": rest,
    "routes.txt": routes,
    "sample_data.json": sample_data,
    "schema.txt": schema,
    "sealed_before.json": sealed_before,
    "seals.json": seals,
    "settings.json": settings,
    "verify.json": verify,
}
