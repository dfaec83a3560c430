"""The outbox and its worker, against a real SMTP server: at least once, with one Message-ID."""

import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import select, text, update

from convene_keys import create_app
from convene_keys.audit.log import Actor
from convene_keys.db.session import db, transaction
from convene_keys.keys import lifecycle
from convene_keys.mail import outbox
from convene_keys.models import Mail, Member, Organization, Scope, Tool
from tests import factories
from tests.conftest import Clock, wait_for
from tests.databases import PEPPER, environ
from tests.mailbox import SENDER, Mailbox
from tests.servers import Server


@pytest.fixture
def box() -> Iterator[Mailbox]:
    with Mailbox() as box:
        yield box


def mailing(database_url: str, **settings: str) -> Flask:
    return create_app(environ(database_url, MAIL_FROM=SENDER, **settings))


@pytest.fixture
def app(database_url: str, box: Mailbox) -> Iterator[Flask]:
    app = mailing(database_url, MAIL_URL=box.url)
    with app.app_context():
        yield app
        db.session.remove()
        assert db.engine.pool.checkedout() == 0, "something kept its connection"
        db.engine.dispose()


@pytest.fixture
def maya(app: Flask, fake_clock: Clock) -> Member:
    return factories.member(factories.organization(), password_hash="set")


def put(of: int, count: int = 1) -> None:
    """So many mails in the outbox."""
    for number in range(count):
        mail = Mail(organization_id=of, kind="test", recipient="maya@example.org")
        mail.subject, mail.text, mail.html = f"Number {number}", "Hello", "<p>Hello</p>"
        db.session.add(mail)
    db.session.commit()


def deliver() -> None:
    """All that is due now."""
    while outbox.deliver_next():
        pass


def mails() -> list[Mail]:
    db.session.rollback()
    return list(db.session.scalars(select(Mail).order_by(Mail.id)))


def mail() -> Mail:
    [mail] = mails()
    return mail


# How it looks --------------------------------------------------------------------------------------


def test_mail_arrives_as_text_and_as_html(box: Mailbox, maya: Member, fake_clock: Clock) -> None:
    put(maya.organization_id)
    deliver()
    [message] = box.taken
    assert message["From"] == f"Convene Keys <{SENDER}>"
    assert message["To"] == "maya@example.org"
    assert message["Subject"] == "Number 0"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime == fake_clock.moment
    assert message["Message-ID"].endswith("@example.org>")
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert [part.get_content().strip() for part in message.iter_parts()] == [
        "Hello",
        "<p>Hello</p>",
    ]
    assert (mail().sent_at, mail().due_at, mail().error) == (fake_clock.moment, None, None)


@pytest.mark.parametrize("name", ["Mäyä’s läptop 🍐", "مفتاح", "x" * 100, ".", "=?utf-8?q?x?="])
def test_any_name_arrives_in_one_piece(box: Mailbox, maya: Member, name: str) -> None:
    put(maya.organization_id)
    subject = f"New API key: {name}"
    text = f".\n..\nFrom {name}\n.\n{'long ' * 400}"
    db.session.execute(update(Mail).values(subject=subject, text=text))
    db.session.commit()
    deliver()
    [message] = box.taken
    assert " ".join(str(message["Subject"]).replace("\u2060", "").split()) == subject
    body = message.get_body(("plain",))
    assert body is not None
    assert body.get_content().splitlines() == text.splitlines()


def test_no_header_can_be_smuggled_in(box: Mailbox, maya: Member) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(subject="Hello\r\nBcc: eve@example.org"))
    db.session.commit()
    deliver()
    assert box.taken == []
    assert mail().given_up_at is not None


def test_mail_to_an_address_that_is_not_ascii_goes_to_nobody(box: Mailbox, maya: Member) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(recipient="måya@example.org"))
    db.session.commit()
    deliver()
    assert box.taken == []
    assert "not ASCII" in str(mail().error)
    assert mail().given_up_at is not None


# When it can't be sent -----------------------------------------------------------------------------


def test_server_down_for_an_hour_delays_nothing_but_the_mail(
    box: Mailbox, maya: Member, fake_clock: Clock
) -> None:
    actor = Actor.system(maya.organization_id)
    for number in range(5):
        lifecycle.create(
            actor,
            name=f"Key {number}",
            tool=Tool.OTHER,
            scope=Scope.READ,
            expires_in_days=None,
            peppers=[PEPPER],
        )
    assert box.taken == [], "a change waited for the mail server"
    box.close()
    for _ in range(60):
        deliver()
        assert all(each.sent_at is None and each.due_at is not None for each in mails())
        fake_clock.advance(minutes=1)
    assert {each.attempts for each in mails()} == {4}
    assert all("ConnectionRefusedError" in str(each.error) for each in mails())
    box.open()
    fake_clock.advance(hours=1)
    deliver()
    assert box.subjects() == [f"New API key: Key {number}" for number in range(5)]
    assert len(set(box.ids())) == 5
    assert all(each.sent_at is not None for each in mails())


@pytest.mark.parametrize("answer", ["451 try later", "550 no", "421 busy", "554 spam"])
@pytest.mark.parametrize("where", ["answer_rcpt", "answer_data"])
def test_mail_that_was_refused_is_tried_again(
    box: Mailbox, maya: Member, fake_clock: Clock, where: str, answer: str
) -> None:
    put(maya.organization_id)
    setattr(box, where, answer)
    for _ in range(2):
        deliver()
        assert mail().sent_at is None
        assert answer in str(mail().error)
        fake_clock.advance(hours=2)
    setattr(box, where, "")
    deliver()
    assert len(box.taken) == 1


def test_mail_is_given_up_after_three_days_and_that_is_told(
    box: Mailbox, maya: Member, fake_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    put(maya.organization_id)
    box.answer_rcpt = "550 no such mailbox"
    deliver()
    with transaction() as session:
        session.execute(update(Mail).values(attempts=70))  # one an hour
    fake_clock.advance(hours=71)
    deliver()
    assert (mail().attempts, mail().given_up_at) == (71, None)
    fake_clock.advance(hours=1)
    deliver()
    assert mail().given_up_at is not None
    assert "for good" in caplog.text
    box.answer_rcpt = ""
    fake_clock.advance(days=1)
    deliver()
    assert box.taken == []


def test_connection_lost_at_the_very_end_means_sent_again_under_the_same_id(
    box: Mailbox, maya: Member, fake_clock: Clock
) -> None:
    put(maya.organization_id)
    box.hang_up = True
    deliver()
    assert (len(box.taken), mail().sent_at) == (1, None)
    box.hang_up = False
    fake_clock.advance(hours=2)
    deliver()
    assert len(box.taken) == 2
    assert len(set(box.ids())) == 1, "the second can be told to be the same"
    assert mail().sent_at is not None


def test_mail_that_is_never_acknowledged_is_sent_ten_times_at_most(
    box: Mailbox, maya: Member, fake_clock: Clock
) -> None:
    put(maya.organization_id)
    box.hang_up = True
    for _ in range(15):
        deliver()
        fake_clock.advance(hours=2)
    assert len(box.taken) == outbox.UNSURE_MAX == 10
    assert (mail().due_at, mail().sent_at, mail().attempts) == (None, None, 10)
    assert mail().given_up_at is not None
    assert "SMTPServerDisconnected" in (mail().error or "")


def test_tries_that_never_came_back_count_as_copies(box: Mailbox, maya: Member) -> None:
    """A worker died in each: a mail that kills its worker must not do so for ever."""
    put(maya.organization_id)
    with transaction() as session:
        session.execute(update(Mail).values(unsure=outbox.UNSURE_MAX))
    deliver()
    assert box.taken == []
    assert (mail().due_at, mail().error) == (None, outbox.NO_ANSWER)
    assert mail().given_up_at is not None


def test_tries_that_were_refused_are_no_copies(
    box: Mailbox, maya: Member, fake_clock: Clock
) -> None:
    put(maya.organization_id)
    box.answer_rcpt = "451 later"
    for _ in range(outbox.UNSURE_MAX + 2):
        deliver()
        fake_clock.advance(hours=2)
    assert (mail().attempts, mail().unsure) == (outbox.UNSURE_MAX + 2, 0)
    box.answer_rcpt = ""
    deliver()
    assert len(box.taken) == 1
    assert mail().sent_at is not None


def test_goodbye_that_fails_is_no_failure(
    box: Mailbox, maya: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(maya.organization_id)

    def quit(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr("smtplib.SMTP.quit", quit)
    deliver()
    assert len(box.taken) == 1
    assert mail().sent_at is not None


def test_try_that_outlasts_its_lease_changes_nothing_of_the_next_one(
    app: Flask, box: Mailbox, maya: Member, fake_clock: Clock
) -> None:
    """Its lease ends while it waits for the server; another one tries the mail meanwhile."""

    def turn() -> None:
        with app.app_context():
            outbox.deliver_next()

    put(maya.organization_id)
    box.hang_before = True
    workers = []
    for attempts in (1, 2):
        workers.append(threading.Thread(target=turn))
        workers[-1].start()
        wait_for(lambda: mail().attempts == attempts)  # noqa: B023
        fake_clock.advance(minutes=6 if attempts == 1 else 0)
    box.hang_before = False
    for worker in workers:
        worker.join()
    assert len(set(box.ids())) == 1
    assert (mail().attempts, mail().error, mail().due_at) == (2, None, None)
    assert mail().sent_at is not None


def test_sent_mail_is_forgotten_after_a_month(maya: Member, fake_clock: Clock) -> None:
    put(maya.organization_id)
    deliver()
    fake_clock.advance(days=31)
    put(maya.organization_id)
    deliver()
    assert mail().created_at == fake_clock.moment


# Several workers, and their death ------------------------------------------------------------------


def due_now() -> None:
    """Let the time that a claim takes be over."""
    with transaction() as session:
        session.execute(update(Mail).where(Mail.due_at.is_not(None)).values(due_at=Mail.created_at))


def test_two_workers_send_each_mail_once(
    app: Flask, box: Mailbox, database_url: str, tmp_path: Path
) -> None:
    of: Organization = factories.organization()
    put(of.id, 40)
    settings = {"MAIL_URL": box.url, "MAIL_FROM": SENDER}
    with Server(database_url, tmp_path / "log", **settings) as server:
        wait_for(lambda: len(server.workers()) == 2)  # the second starts a moment later
        wait_for(lambda: all(each.sent_at for each in mails()), seconds=30)
    assert len(box.taken) == 40
    assert set(Counter(box.ids()).values()) == {1}
    assert {each.attempts for each in mails()} == {1}


def test_worker_killed_in_the_middle_loses_no_mail(
    app: Flask, box: Mailbox, database_url: str, tmp_path: Path
) -> None:
    """Killed while it waits for the answer to RCPT, again and again."""
    of: Organization = factories.organization()
    put(of.id)
    settings = {"MAIL_URL": box.url, "MAIL_FROM": SENDER}
    box.hang_before = True
    for attempt in (1, 2):
        with Server(database_url, tmp_path / "log", workers=1, **settings) as server:
            wait_for(lambda: mail().attempts == attempt)  # noqa: B023
            server.kill()
        due_now()
    assert box.taken == []
    box.hang_before = False
    with Server(database_url, tmp_path / "log", workers=1, **settings):
        wait_for(lambda: mail().sent_at)
    assert len(box.taken) == 1


def test_worker_killed_after_the_end_once_sends_it_twice_and_then_knows(
    app: Flask, box: Mailbox, database_url: str, tmp_path: Path
) -> None:
    of: Organization = factories.organization()
    put(of.id, 3)
    settings = {"MAIL_URL": box.url, "MAIL_FROM": SENDER}
    box.hang = True
    with Server(database_url, tmp_path / "log", workers=1, **settings) as server:
        wait_for(lambda: len(box.taken) >= 1)
        server.kill()
    due_now()
    box.hang = False
    with Server(database_url, tmp_path / "log", workers=1, **settings):
        wait_for(lambda: all(each.sent_at for each in mails()))
    assert set(Counter(box.ids()).values()) <= {1, 2}
    assert len(set(box.ids())) == 3


def test_worker_outlives_a_failure_and_stops_when_told(
    app: Flask, box: Mailbox, maya: Member, caplog: pytest.LogCaptureFixture
) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(due_at=None))
    db.session.commit()
    db.session.execute(text("ALTER TABLE mail RENAME TO elsewhere"))
    db.session.commit()
    stop = outbox.start(app, every=0.01)
    wait_for(lambda: "mail could not be sent" in caplog.text)
    db.session.execute(text("ALTER TABLE elsewhere RENAME TO mail"))
    db.session.execute(update(Mail).values(due_at=Mail.created_at))
    db.session.commit()
    wait_for(lambda: box.taken)
    stop()
    assert "outbox" not in {thread.name for thread in threading.enumerate()}


def test_without_a_mail_server_there_is_no_worker(sqlite_url: str) -> None:
    outbox.start(create_app(environ(sqlite_url)))()
    assert "outbox" not in {thread.name for thread in threading.enumerate()}


# doctor --------------------------------------------------------------------------------------------


def doctor(app: Flask) -> str:
    result = app.test_cli_runner().invoke(args=["doctor"])
    [line] = [line for line in result.stdout.splitlines() if " mail: " in line]
    if line.startswith("failed"):
        assert result.exit_code == 5
    return line


def test_doctor_tries_the_mail_server_and_sends_nothing(app: Flask, box: Mailbox) -> None:
    assert doctor(app) == f"ok       mail: 127.0.0.1:{box.port} takes mail from {SENDER}"
    assert box.taken == []
    box.close()
    assert doctor(app).startswith("failed   mail: 127.0.0.1:")
    assert "ConnectionRefusedError" in doctor(app)


def test_doctor_tells_of_mail_that_could_not_be_delivered(
    app: Flask, maya: Member, box: Mailbox, fake_clock: Clock
) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(due_at=None, given_up_at=fake_clock.moment))
    db.session.commit()
    assert "but 1 in the last week could not be delivered" in doctor(app)
    fake_clock.advance(days=8)
    assert doctor(app).startswith("ok")


def test_doctor_warns_of_mail_that_can_be_read_on_the_way(
    sqlite_url: str, box: Mailbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convene_keys.config.is_loopback", lambda _: False)
    assert doctor(mailing(sqlite_url, MAIL_URL=box.url)).startswith("warning")


# Signing in at the server --------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_password_goes_only_to_a_server_that_proves_who_it_is(
    sqlite_url: str,
    certificate: tuple[Path, ssl.SSLContext],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    path, context = certificate
    monkeypatch.setattr("convene_keys.config.is_loopback", lambda _: False)
    if known:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with Mailbox(tls=context, login=("us er", "p@ss:word")) as box:
        url = f"smtp://us%20er:p%40ss:word@localhost:{box.port}"
        app = mailing(sqlite_url, MAIL_URL=url)
        with app.app_context():
            put(factories.organization().id)
            deliver()
            if known:
                assert box.signed_in == [("us er", "p@ss:word")]
                assert len(box.taken) == 1
            else:
                assert (box.signed_in, box.taken) == ([], [])
                assert "CERTIFICATE_VERIFY_FAILED" in str(mail().error)
            db.session.remove()
            db.engine.dispose()


def test_password_is_not_sent_in_clear_where_the_server_has_no_encryption(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convene_keys.config.is_loopback", lambda _: False)
    with Mailbox(login=("maya", "secret")) as box:
        app = mailing(sqlite_url, MAIL_URL=f"smtp://maya:secret@localhost:{box.port}")
        with app.app_context():
            put(factories.organization().id)
            deliver()
            assert (box.signed_in, box.taken) == ([], [])
            assert "STARTTLS" in str(mail().error)
            db.session.remove()
            db.engine.dispose()


def test_wrong_password_is_told_without_it(sqlite_url: str) -> None:
    with Mailbox(login=("maya", "right")) as box:
        app = mailing(sqlite_url, MAIL_URL=f"smtp://maya:wr0ng-one@127.0.0.1:{box.port}")
        with app.app_context():
            put(factories.organization().id)
            deliver()
            assert box.taken == []
            assert "535" in str(mail().error)
            assert "wr0ng-one" not in str(mail().error)
            db.session.remove()
            db.engine.dispose()


@pytest.mark.parametrize(
    ("kind", "header"),
    [("weekly", "<http://127.0.0.1:8000/admin/settings/account#mail>"), ("key_leaked", None)],
)
def test_mail_that_can_be_switched_off_says_where(
    app: Flask, box: Mailbox, maya: Member, kind: str, header: str | None
) -> None:
    put(maya.organization_id)
    db.session.execute(update(Mail).values(kind=kind))
    db.session.commit()
    assert outbox.deliver_next()
    assert box.taken[0]["List-Unsubscribe"] == header
