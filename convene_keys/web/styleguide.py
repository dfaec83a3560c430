"""Every component in every state on one page, for whoever works on the look. In debug mode only."""

from datetime import timedelta

from flask import Blueprint, Response, abort, current_app
from wtforms import BooleanField, PasswordField, RadioField, SelectField, StringField, TextAreaField

from convene_keys import clock
from convene_keys.http.access import Access, access
from convene_keys.models import ApiKey, AuditEvent, Member, Organization
from convene_keys.web import charts
from convene_keys.web.forms import Form
from convene_keys.web.keys import KeyFilters
from convene_keys.web.respond import page

blueprint = Blueprint("styleguide", __name__)

LONG = "Bakery stall tablet at the Saturday market by the river, kept by the second team"
WORD = "Donaudampfschifffahrtselektrizitätenhaupt"


class SampleForm(Form):
    name = StringField("Name")
    wrong = StringField("Name with an error")
    secret = PasswordField("Password")
    note = TextAreaField("Note")
    expires = SelectField("Expires", choices={"": "Never", "90": "In 3 months"})
    scope = RadioField("What may it do?", choices={"read": "Only read", "write": "Read and change"})
    extra = BooleanField("Add sample data")


@blueprint.get("/styleguide")
@access(Access.PUBLIC)
def show() -> Response:
    if not current_app.debug:
        abort(404)
    form = SampleForm(data={"name": LONG, "scope": "read"})
    form.wrong.errors = ["Please give it a name."]
    days = charts.last_days(clock.now().date())
    counts = [day * day % 23 if day % 7 > 1 else 0 for day in range(len(days))]
    sample = _keys()
    return page(
        "styleguide.html",
        form=form,
        chart=charts.bars(days, counts, charts.CAP),
        keys=sample,
        filters=KeyFilters(),
        pages=1,
        used={key.id: counts if key.last_used_at else [] for key in sample},
        spark=charts.spark,
        events=_events(),
        may=lambda role: True,
    )


def _keys() -> list[ApiKey]:
    """A key of each status, none of them in the database."""
    now, day = clock.now(), timedelta(days=1)
    states: list[tuple[str, str, dict[str, object]]] = [
        ("Claude on Maya’s laptop", "claude", {"last_used_at": now - day / 24}),
        (LONG, "developer", {"expires_at": now + 5 * day, "scope": "read"}),
        (WORD, "chatgpt", {"expires_at": now - day}),
        ("Old till", "other", {"revoked_at": now - day, "refused_count": 3, "refused_at": now}),
    ]
    return [
        ApiKey(
            id=number,
            name=name,
            tool=tool,
            hint="fm_org_Ab12",
            created_at=now - 90 * day,
            organization=Organization(rotate_months=6),
            creator=Member(name="Maya Lindqvist"),
            revoked_by_name="Maya Lindqvist",
            last_used_ip="203.0.113.24",
            **({"scope": "read_write", "refused_count": 0} | more),
        )
        for number, (name, tool, more) in enumerate(states, 1)
    ]


def _events() -> list[AuditEvent]:
    """A line of each outcome, by actors of each kind."""
    lines = [
        ("key", "booking.approved", "booking 123", "ok"),
        ("key", "booking.approved", "booking 124", "denied"),
        ("member", "key.created", WORD, "failed"),
    ]
    return [
        AuditEvent(
            id=number,
            at=clock.now(),
            actor=actor,
            key_name=LONG,
            member_name="Maya Lindqvist",
            action=action,
            target_name=target,
            outcome=outcome,
            ip="203.0.113.24",
            user_agent="Claude/1.0",
            detail={},
        )
        for number, (actor, action, target, outcome) in enumerate(lines, 1)
    ]
