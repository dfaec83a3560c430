"""The key pages, as a browser with and without HTMX sees them."""

import re
from datetime import timedelta

import pytest

from convene_keys.audit.actions import Action
from convene_keys.audit.log import Actor, Origin, record
from convene_keys.db.session import db, transaction
from convene_keys.keys import queries as key_queries
from convene_keys.models import ApiKey, AuditEvent
from tests import factories
from tests.conftest import Browser, Clock

pytestmark = pytest.mark.on_sqlite

HTMX = {"HX-Request": "true"}


def events_of(action: str) -> list[AuditEvent]:
    return db.session.query(AuditEvent).filter_by(action=action).all()


@pytest.fixture
def maya(client: Browser):
    """An admin, signed in."""
    member = factories.member(factories.organization(), "admin", "Maya")
    client.sign_in(member)
    return member


def rows(html: str) -> list[str]:
    return re.findall(r'<tr id="key-(\d+)"', html)


def create(client: Browser, **form: str):
    return client.post("/admin/api_keys", data={"name": "Claude on laptop", **form})


def secret_in(html: str) -> str:
    found = re.search(r'<input[^>]*id="new-key"[^>]*value="(fm_org_[0-9A-Za-z]{38})"[^>]*>', html)
    assert found
    assert "readonly" in found[0]
    return found[1]


def test_what_nobody_is_known_of_is_never_called_none(client, maya):
    made, _ = factories.api_key(maya.organization)  # on the command line
    with transaction() as session:
        record(session, Actor.of_key(made, Origin()), Action.BOOKING_APPROVED)
    for path in ("", f"/{made.id}", f"/{made.id}/leak", f"/{made.id}/leak/report.txt"):
        page = client.get(f"/admin/api_keys{path}").text
        assert "None" not in page, path
    assert "by the command line" in client.get("/admin/api_keys").text


def test_create_shows_the_secret_once_and_it_works(client, maya):
    answer = create(client, tool="claude", scope="read_write")

    secret = secret_in(answer.text)
    assert answer.headers["Cache-Control"] == "no-store"
    key = db.session.query(ApiKey).one()
    assert (key.name, key.tool, key.scope, key.creator.name) == (
        "Claude on laptop",
        "claude",
        "read_write",
        "Maya",
    )
    assert secret not in client.get("/admin/api_keys").text
    assert secret not in client.get(f"/admin/api_keys/{key.id}").text
    used = client.get("/api/v1/admin/me", headers={"Authorization": f"Bearer {secret}"})
    assert used.json["key"]["name"] == "Claude on laptop"


def test_create_records_who_made_which_key_without_the_secret(client, maya):
    secret = secret_in(create(client).text)
    (event,) = events_of("key.created")
    assert (event.member_name, event.target_name, event.outcome) == (
        "Maya",
        "Claude on laptop",
        "ok",
    )
    assert secret not in str(vars(event))


def test_create_with_only_a_name_reads_and_writes_and_never_ends(client, maya):
    assert create(client).status_code == 200
    key = db.session.query(ApiKey).one()
    assert (key.scope, key.tool, key.expires_at) == ("read_write", "other", None)


def test_create_with_days_ends_by_then(client, maya, fake_clock: Clock):
    client.sign_in(maya)
    create(client, expires_in_days="45")
    key = db.session.query(ApiKey).one()
    assert (key.expires_at - fake_clock()).days == 45


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "  \t "}, "name"),
        ({"name": "x" * 101}, "name"),
        ({"name": "x" * 10_000}, "name"),
        ({"name": "a\0b"}, "name"),
        ({"name": "invoice\u202egpj.exe"}, "name"),
        ({"tool": "toaster"}, "tool"),
        ({"scope": "everything"}, "scope"),
        ({"expires_in_days": "soon"}, "expires_in_days"),
        ({"expires_in_days": "0"}, "expires_in_days"),
        ({"expires_in_days": "-3"}, "expires_in_days"),
        ({"expires_in_days": "99999"}, "expires_in_days"),
        ({"expires_in_days": "٣"}, "expires_in_days"),
    ],
)
def test_create_with_bad_input_keeps_what_was_typed_and_makes_nothing(client, maya, form, field):
    answer = client.post(
        "/admin/api_keys", data={"name": "My key", "scope": "read", "tool": "claude", **form}
    )
    assert answer.status_code == 422
    assert f'id="{field}-error"' in answer.text
    assert 'value="claude" required checked' in re.sub(r"\s+", " ", answer.text) or field == "tool"
    if field != "name":
        assert 'value="My key"' in answer.text
    assert db.session.query(ApiKey).count() == 0
    assert db.session.query(AuditEvent).count() == 0


def test_create_takes_names_in_any_script(client, maya):
    assert create(client, name="مفتاح السوق").status_code == 200
    assert "مفتاح السوق" in client.get("/admin/api_keys").text


def test_create_twice_with_one_name_makes_one_key(client, maya):
    assert create(client).status_code == 200
    for name in ("Claude on laptop", " CLAUDE  on laptop "):
        again = create(client, name=name)
        assert again.status_code == 422
        assert "Another active key has this name" in again.text
    assert db.session.query(ApiKey).count() == 1


def test_the_form_of_a_key_sent_again_leads_to_the_key_that_it_made(client, maya):
    link = "You made this key just now."
    create(client)
    assert link in create(client).text
    client.sign_in(factories.member(maya.organization, name="Noor"))
    assert link not in create(client).text


def test_create_refuses_a_key_as_a_name_and_says_what_to_do(client, maya):
    _, token = factories.api_key(maya.organization)
    answer = create(client, name=f"key {token}")
    assert answer.status_code == 400
    assert "revoke it" in answer.text
    assert db.session.query(ApiKey).count() == 1


def test_list_shows_only_own_working_keys_newest_first(client, maya, fake_clock: Clock):
    client.sign_in(maya)
    first, _ = factories.api_key(maya.organization, "First", created_at=fake_clock())
    fake_clock.advance(minutes=1)
    second, _ = factories.api_key(maya.organization, "Second", created_at=fake_clock())
    factories.api_key(maya.organization, "Gone", revoked_at=fake_clock(), released_at=fake_clock())
    factories.api_key(factories.organization("Elsewhere"), "Foreign")

    html = client.get("/admin/api_keys").text

    assert rows(html) == [str(second.id), str(first.id)]
    assert "Foreign" not in html
    assert re.search(r'role="status"[^>]*>\s*2 keys', html)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("q=LAPTOP", ["Claude on laptop"]),
        ("q=%25", []),
        ("sort=name&dir=asc", ["ChatGPT", "Claude on laptop", "Website"]),
        ("sort=name&dir=desc", ["Website", "Claude on laptop", "ChatGPT"]),
        ("sort=last_used&dir=desc", ["Website", "ChatGPT", "Claude on laptop"]),
        ("status=expiring", ["ChatGPT"]),
        ("status=revoked", ["Old one"]),
        ("status=all&sort=name&dir=asc", ["ChatGPT", "Claude on laptop", "Old one", "Website"]),
    ],
)
def test_list_searches_sorts_and_filters(client, maya, fake_clock: Clock, query, expected):
    client.sign_in(maya)
    of, now = maya.organization, fake_clock()
    keys_by_name = {}
    for name, values in {
        "Claude on laptop": {},
        "ChatGPT": {"expires_at": now.replace(day=30)},
        "Website": {"last_used_at": now},
        "Old one": {"revoked_at": now, "released_at": now},
    }.items():
        fake_clock.advance(seconds=1)
        keys_by_name[name] = str(
            factories.api_key(of, name, created_at=fake_clock(), **values)[0].id
        )

    html = client.get(f"/admin/api_keys?{query}").text

    assert rows(html) == [keys_by_name[name] for name in expected]


def test_list_has_pages(client, maya):
    for number in range(2 * key_queries.PAGE_SIZE + 1):
        factories.api_key(maya.organization, f"Key {number}")
    seen = [rows(client.get(f"/admin/api_keys?page={page}").text) for page in (1, 2, 3)]
    assert [len(page) for page in seen] == [key_queries.PAGE_SIZE, key_queries.PAGE_SIZE, 1]
    assert len({row for page in seen for row in page}) == 2 * key_queries.PAGE_SIZE + 1
    assert rows(client.get("/admin/api_keys?page=99").text) == seen[2]


@pytest.mark.parametrize(
    "query",
    [
        "status=nope",
        "sort=digest",
        "dir=up",
        "page=0",
        "page=-1",
        "page=x",
        "page=1e9",
        "q=" + "x" * 101,
        "q=%00",
    ],
)
def test_list_answers_400_for_what_it_cannot_do(client, maya, query):
    assert client.get(f"/admin/api_keys?{query}").status_code == 400


def test_list_gives_htmx_the_table_only(client, maya):
    factories.api_key(maya.organization)
    answer = client.get("/admin/api_keys", headers=HTMX)
    assert "<html" not in answer.text
    assert len(rows(answer.text)) == 1
    assert "HX-Request" in answer.vary


def test_list_without_keys_teaches_the_next_step(client, maya):
    html = client.get("/admin/api_keys").text
    assert "No keys yet" in html
    assert 'href="/admin/api_keys/new"' in html


def test_viewer_reads_but_is_offered_nothing_else(client):
    of = factories.organization()
    key, _ = factories.api_key(of)
    client.sign_in(factories.member(of, "viewer"))
    html = client.get("/admin/api_keys").text
    assert len(rows(html)) == 1
    assert "Revoke Claude" not in html
    assert "/admin/api_keys/new" not in html
    assert client.post(f"/admin/api_keys/{key.id}/revoke").status_code == 403
    assert client.get("/admin/api_keys/new").status_code == 403
    assert create(client).status_code == 403
    assert db.session.get(ApiKey, key.id).works


def test_revoke_by_htmx_returns_the_row_and_a_toast(client, maya):
    key, token = factories.api_key(maya.organization)
    confirm = client.get(f"/admin/api_keys/{key.id}/revoke", headers=HTMX)
    assert "<dialog" in confirm.text
    assert "be undone" in confirm.text

    answer = client.post(
        f"/admin/api_keys/{key.id}/revoke", headers=HTMX, data={"reason": "Lost laptop"}
    )

    assert answer.status_code == 200
    assert rows(answer.text) == [str(key.id)]
    assert "Revoked just now by Maya" in answer.text
    assert "autofocus" in answer.text
    assert "stopped working at once" in answer.headers["HX-Trigger"]
    assert len(answer.data) < 2_000
    (event,) = events_of("key.revoked")
    assert event.detail == {"reason": "Lost laptop"}
    used = client.get("/api/v1/admin/me", headers={"X-API-Key": token})
    assert (used.status_code, used.json["code"]) == (401, "key_revoked")


def test_revoke_without_javascript_is_a_page_and_a_redirect(client, maya):
    key, _ = factories.api_key(maya.organization)
    confirm = client.get(f"/admin/api_keys/{key.id}/revoke").text
    assert "<html" in confirm
    assert "<dialog" not in confirm
    answer = client.post(f"/admin/api_keys/{key.id}/revoke")
    assert (answer.status_code, answer.location) == (303, "/admin/api_keys")
    assert "Claude on laptop was revoked" in client.get(answer.location).text


def test_revoke_twice_keeps_the_first_time(client, maya, fake_clock: Clock):
    client.sign_in(maya)
    key, _ = factories.api_key(maya.organization)
    client.post(f"/admin/api_keys/{key.id}/revoke", data={"reason": "first"})
    fake_clock.advance(minutes=5)
    client.post(f"/admin/api_keys/{key.id}/revoke", data={"reason": "second"})
    again = db.session.get(ApiKey, key.id)
    assert again.revoke_reason == "first"
    assert len(events_of("key.revoked")) == 1


@pytest.mark.parametrize("reason", ["x" * 301, "a\0b"])
def test_revoke_with_a_bad_reason_shows_the_form_again(client, maya, reason):
    key, _ = factories.api_key(maya.organization)
    answer = client.post(f"/admin/api_keys/{key.id}/revoke", headers=HTMX, data={"reason": reason})
    assert answer.status_code == 422
    assert 'id="reason-error"' in answer.text
    assert db.session.get(ApiKey, key.id).works


def test_rename_changes_the_name_and_keeps_the_log(client, maya):
    key, _ = factories.api_key(maya.organization)
    answer = client.post(
        f"/admin/api_keys/{key.id}/rename", headers=HTMX, data={"name": "Claude at home"}
    )
    assert answer.status_code == 200
    assert "Claude at home" in answer.text
    (event,) = events_of("key.renamed")
    assert event.detail == {"before": "Claude on laptop"}
    plain = client.post(f"/admin/api_keys/{key.id}/rename", data={"name": "Third"})
    assert (plain.status_code, plain.location) == (303, f"/admin/api_keys/{key.id}")


@pytest.mark.parametrize("name", ["", "x" * 101, "Taken"])
def test_rename_to_a_bad_name_says_so_and_keeps_it(client, maya, name):
    factories.api_key(maya.organization, "taken")
    key, _ = factories.api_key(maya.organization)
    for headers in ({}, HTMX):
        answer = client.post(
            f"/admin/api_keys/{key.id}/rename", headers=headers, data={"name": name}
        )
        assert answer.status_code == 422
        assert 'id="name-error"' in answer.text
    assert db.session.get(ApiKey, key.id).name == "Claude on laptop"


def test_key_page_says_what_it_can_do_and_did(client, maya):
    key, token = factories.api_key(maya.organization, scope="read", creator=maya)
    client.get("/api/v1/admin/bookings", headers={"Authorization": f"Bearer {token}"})
    html = client.get(f"/admin/api_keys/{key.id}").text
    assert "Change anything" in html
    assert "listed bookings" in html
    assert f'data-key="{key.id}"' in html


@pytest.mark.parametrize("ending", ["", "/revoke", "/rename"])
def test_another_organizations_key_is_exactly_a_missing_one(client, maya, ending):
    foreign, _ = factories.api_key(factories.organization("Elsewhere"))

    def answer(key_id: int) -> tuple[int, str]:
        address = f"/admin/api_keys/{key_id}{ending}"
        got = client.post(address) if ending else client.get(address)
        changing = r'[0-9a-v]{16}|csrf.token" (content|value)="[^"]*"'  # which tells the second
        return got.status_code, re.sub(changing, "", got.text)

    assert answer(foreign.id) == answer(999_999)
    assert answer(foreign.id)[0] == 404
    assert db.session.get(ApiKey, foreign.id).works


@pytest.mark.parametrize("password", ["", "wrong"])
def test_after_half_an_hour_creating_needs_the_password(client, fake_clock: Clock, password):
    maya = factories.member(factories.organization(), password_hash=None)
    client.sign_in(maya)
    fake_clock.advance(minutes=31)
    assert 'name="current_password"' in client.get("/admin/api_keys/new").text
    data = {"name": "Second", "current_password": password}
    answer = client.post("/admin/api_keys", data=data)
    assert answer.status_code == 422
    assert 'id="current_password-error"' in answer.text
    assert db.session.query(ApiKey).count() == 0


def test_the_right_password_makes_the_session_fresh_again(client, fake_clock: Clock):
    from convene_keys.accounts import passwords
    from tests.databases import PEPPER

    right = "correct horse battery staple"
    maya = factories.member(
        factories.organization(), password_hash=passwords.hash_password(right, [PEPPER])
    )
    client.sign_in(maya)
    fake_clock.advance(minutes=31)
    assert create(client, current_password=right).status_code == 200
    assert create(client, name="Second").status_code == 200


def test_a_stale_form_changes_nothing_and_says_so(strict_client):
    maya = factories.member(factories.organization())
    strict_client.sign_in(maya)
    answer = create(strict_client)
    assert answer.status_code == 400
    assert "out of date" in answer.text
    assert db.session.query(ApiKey).count() == 0


def test_calls_of_the_last_days_are_drawn_in_the_list_and_on_the_keys_page(
    client, maya, fake_clock
):
    used, _ = factories.api_key(maya.organization, "Used")
    idle, _ = factories.api_key(maya.organization, "Idle")
    noon = fake_clock()
    for days in (31, 2, 0, 0):
        fake_clock.moment = noon - timedelta(days=days)
        with transaction() as session:
            record(session, Actor.of_key(used, Origin()), Action.BOOKING_LISTED)
    client.sign_in(maya)

    listed = client.get("/admin/api_keys").text
    assert listed.count("Used on 2 of the last 30 days") == 1
    assert 'd="M27 10v-5M29 10v-10"' in listed
    answer = client.post(f"/admin/api_keys/{used.id}/revoke", headers=HTMX)
    assert "Used on 2 of the last 30 days" in answer.text
    assert len(answer.data) <= 2_048

    page = client.get(f"/admin/api_keys/{used.id}").text
    day = f'href="/admin/audit_log?key={used.id}&amp;since=2026-11-24&amp;until=2026-11-24"'
    assert day in page
    assert "Busiest: 24 Nov, 2 calls" in page
    assert "Busiest" not in client.get(f"/admin/api_keys/{idle.id}").text


# Rotation ----------------------------------------------------------------------------------------


@pytest.fixture
def old(maya, fake_clock: Clock) -> ApiKey:
    """Maya's key, used an hour ago."""
    key, _ = factories.api_key(maya.organization, "Website", creator=maya, tool="developer")
    use(key)
    fake_clock.advance(hours=1)
    return key


def use(key: ApiKey) -> None:
    with transaction() as session:
        record(session, Actor.of_key(key, Origin("192.0.2.7", "curl/8")), Action.BOOKING_LISTED)


def rotate(client: Browser, key: ApiKey, **form: str):
    return client.post(f"/admin/api_keys/{key.id}/rotate", data=form)


def newest() -> ApiKey:
    return db.session.query(ApiKey).order_by(ApiKey.id.desc()).first()


def test_rotate_shows_the_successors_secret_once_with_the_steps(client, maya, old):
    page = client.get(f"/admin/api_keys/{old.id}/rotate").text
    assert 'value="24" required checked' in " ".join(page.split())
    answer = rotate(client, old)
    secret = secret_in(answer.text)
    assert answer.headers["Cache-Control"] == "no-store"
    assert "The old one works until" in answer.text
    new = newest()
    assert (new.name, new.predecessor_id, new.created_by_id) == ("Website", old.id, maya.id)
    assert secret not in client.get(f"/admin/api_keys/{new.id}").text
    used = client.get("/api/v1/admin/me", headers={"Authorization": f"Bearer {secret}"})
    assert used.status_code == 200


@pytest.mark.parametrize("grace", ["", "2", "-1", "169", "nan", "24 "])
def test_rotate_takes_no_other_grace_period(client, maya, old, grace):
    answer = rotate(client, old, grace=grace)
    assert answer.status_code == 422
    assert newest().id == old.id


def test_rotate_at_once_revokes_the_old_key(client, maya, old):
    answer = rotate(client, old, grace="0")
    assert "The old one has stopped working." in answer.text
    db.session.refresh(old)
    assert old.status == "revoked"


def test_rotating_what_cannot_be_says_so(client, maya, old):
    """What was rotated already leads to the new key; the form may only have been sent again."""
    rotate(client, old)
    new = f"/admin/api_keys/{newest().id}"
    for answer in (client.get(f"/admin/api_keys/{old.id}/rotate"), rotate(client, old)):
        assert (answer.status_code, answer.location) == (303, new)
    assert client.get(new).text.count("Website was replaced already.") == 2
    client.post(f"{new}/revoke")
    answer = rotate(client, newest())
    assert answer.status_code == 409
    assert "This key has ended." in answer.text
    factories.api_key(factories.organization())
    absent, theirs = ApiKey(id=10**9), newest()
    assert rotate(client, absent).status_code == rotate(client, theirs).status_code == 404


def test_a_name_that_is_taken_meanwhile_is_said_on_the_page_of_a_rotation(client, maya, old):
    rotate(client, old)
    client.post(f"/admin/api_keys/{newest().id}/revoke")
    factories.api_key(maya.organization, old.name)
    answer = rotate(client, old)
    assert answer.status_code == 422
    assert "Another active key has this name" in answer.text


def test_list_shows_the_old_key_beneath_its_successor(client, maya, old):
    rotate(client, old)
    new = newest()
    page = client.get("/admin/api_keys").text
    assert rows(page) == [str(new.id), str(old.id)]
    assert "works until" in page
    assert 'aria-label="Retire the old Website now"' in page
    assert 'aria-label="Rotate Website"' in page
    assert re.search(r'role="status"[^>]*>\s*1 key\b', page)


def test_page_tells_how_far_the_handover_is(client, maya, old, fake_clock: Clock):
    rotate(client, old)
    new = newest()

    def told() -> str:
        pages = [client.get(f"/admin/api_keys/{key.id}").text for key in (old, new)]
        words = [" ".join(re.sub(r"<[^>]+>", "", page).split()) for page in pages]
        found = [re.search(r"(The new key has|New key first).*?(?= Retire now)", w) for w in words]
        assert all(found)
        assert found[0][0] == found[1][0], "both pages say the same"
        return found[0][0]

    fake_clock.advance(hours=1)
    assert told() == (
        "The new key has not been used yet. Old key last used 12:00. "
        "Put the new key where the old one is."
    )
    use(new)
    assert told() == "New key first used 14:00. Old key last used 12:00. Safe to retire."
    fake_clock.advance(minutes=5)
    use(old)
    assert told() == (
        "New key first used 14:00. Old key last used 14:05. "
        "Something still uses the old key: give it the new one."
    )
    fake_clock.advance(days=1)
    assert "Old key last used" not in client.get(f"/admin/api_keys/{new.id}").text


def test_retiring_the_old_key_leaves_the_new_one(client, maya, old):
    rotate(client, old)
    answer = client.post(f"/admin/api_keys/{old.id}/revoke", headers=HTMX)
    assert rows(answer.text) == [str(old.id)]
    assert rows(client.get("/admin/api_keys").text) == [str(newest().id)]


def test_audit_log_tells_the_two_keys_of_one_name_apart(client, maya, old):
    rotate(client, old)
    page = client.get("/admin/audit_log").text
    assert f'<option value="{old.id}">Website (old)</option>' in page
    assert f'<option value="{newest().id}">Website</option>' in page


def test_where_only_admins_make_keys_a_manager_can_only_revoke_them(client, maya, old):
    organization = maya.organization
    noor = factories.member(organization, "manager", "Noor")
    _, secret = factories.api_key(organization, "Noor’s", creator=noor)
    organization.key_makers = "admins"
    db.session.commit()
    client.sign_in(noor)
    assert client.get("/admin/api_keys/new").status_code == 403
    assert create(client).status_code == 403
    assert client.get(f"/admin/api_keys/{old.id}/rotate").status_code == 403
    assert rotate(client, old).status_code == 403
    page = client.get("/admin/api_keys").text
    assert "Create key" not in page
    assert "Rotate Website" not in page
    used = client.get("/api/v1/admin/me", headers={"Authorization": f"Bearer {secret}"})
    assert used.status_code == 200, "keys that were made before go on"
    assert client.post(f"/admin/api_keys/{old.id}/revoke").status_code == 303
    client.sign_in(maya)
    assert create(client).status_code == 200


def test_after_a_revoke_in_place_the_whole_page_is_true(client, maya, fake_clock: Clock):
    """The badge, the count, what stops soon and the banner, each as the page would say it anew."""
    soon = fake_clock() + timedelta(days=3)
    factories.api_key(maya.organization, "Safe", expires_at=fake_clock() + timedelta(days=90))
    factories.api_key(maya.organization, "Soon", expires_at=soon)
    key, secret = factories.api_key(maya.organization, "Newest", creator=maya)
    factories.call(secret, "list_bookings")
    address = "/admin/api_keys?status=active&sort=name"
    before = client.get(address).text
    assert "Connected:" in before
    assert "1 key stops" in before
    here = {**HTMX, "HX-Current-URL": f"http://localhost{address}"}
    for name, count in (("Newest", 2), ("Soon", 1), ("Safe", 0)):
        key = db.session.query(ApiKey).filter_by(name=name).one()
        answer = client.post(f"/admin/api_keys/{key.id}/revoke", headers=here)
        assert answer.text.strip().startswith("<tr")
        anew = client.get(address).text
        for part in ("findings", "count", "notices"):
            told, now = (
                re.search(rf'(?s)<(\w+)[^>]* id="{part}"[^>]*>(.*?)</\1>', html)[2]
                for html in (answer.text, anew)
            )
            assert " ".join(told.split()) == " ".join(now.split()), part
        assert f">{count} key{'' if count == 1 else 's'}<" in answer.text
    assert "Connected:" not in anew
    assert "stops" not in anew


def test_with_all_keys_revoked_the_list_says_so(client, maya):
    key, _ = factories.api_key(maya.organization)
    client.post(f"/admin/api_keys/{key.id}/revoke")
    page = client.get("/admin/api_keys").text
    assert "No keys match" not in page
    assert "No key works any more" in page
    assert 'href="/admin/api_keys?status=revoked"' in page
    assert "No key stops working soon" in client.get("/admin/api_keys?status=expiring").text
    assert "No keys match" in client.get("/admin/api_keys?q=nonsense").text


def test_a_rename_in_place_renames_all_of_the_page(client, maya):
    key, _ = factories.api_key(maya.organization, "Claude on laptop")
    answer = client.post(
        f"/admin/api_keys/{key.id}/rename", headers=HTMX, data={"name": "Claude at home"}
    )
    assert "Claude on laptop" not in answer.text
    anew = client.get(f"/admin/api_keys/{key.id}").text
    assert answer.text.count("Claude at home") == anew.count("Claude at home") > 4


@pytest.mark.parametrize("ending", ["", "/rotate"])
def test_a_new_key_in_place_tells_the_badge(client, maya, fake_clock: Clock, ending):
    key, _ = factories.api_key(maya.organization, "Old", creator=maya)
    fake_clock.advance(days=300)
    client.sign_in(maya)
    path = f"/admin/api_keys/{key.id}/rotate" if ending else "/admin/api_keys"
    answer = client.post(path, headers=HTMX, data={"name": "New", "grace": "0"})
    anew = client.get("/admin/api_keys").text
    assert 'id="findings"' in answer.text
    told = re.search(r'(?s)<span id="findings"[^>]*>(.*)</span>', answer.text)[1]
    now = re.search(r'(?s)<span id="findings"[^>]*>(.*?)</span></a>', anew)[1]
    assert " ".join(told.split()) == " ".join(now.split())
