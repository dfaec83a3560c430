"""The outbox and its worker, against a real SMTP server: at least once, with one Message-ID."""

import threading
from collections import Counter
from pathlib import Path

import pytest
from flask import Flask
from sqlalchemy import text, update

from convene_keys import create_app
from convene_keys.audit.log import Actor
from convene_keys.db.session import db, transaction
from convene_keys.keys import lifecycle
from convene_keys.mail import outbox
from convene_keys.models import Mail, Member, Organization, Scope, Tool
from tests import factories
from tests.conftest import Clock, wait_for
from tests.databases import PEPPER, environ
from tests.mail.conftest import deliver, mail, mailing, mails, put
from tests.mailbox import SENDER, Mailbox
from tests.servers import Server

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
