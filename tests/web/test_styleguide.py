"""The page of all components, for whoever works on the look."""

import pytest

from tests.conftest import Browser

pytestmark = pytest.mark.on_sqlite


def test_every_component_in_every_state_in_debug_mode_only(app, client: Browser):
    assert client.get("/styleguide").status_code == 404
    app.debug = True
    html = client.get("/styleguide").text
    for state in (
        *("badge-ok", "badge-warn", "badge-danger", "badge-neutral"),
        *("notice-ok", "notice-warn", "notice-danger", "notice-info"),
        *(
            'aria-invalid="true"',
            "disabled",
            'aria-busy="true"',
            'class="attention"',
            'class="off"',
        ),
        *("<dialog", 'class="menu"', "toast-danger", 'class="empty"', 'class="spark"', "<rect"),
        *('data-outcome="ok"', 'data-outcome="denied"', 'data-outcome="failed"', 'class="choice"'),
    ):
        assert state in html, state
    assert "style=" not in html
