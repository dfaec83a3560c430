"""The first run in a browser: what the page learns from it by itself."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.conftest import PATIENCE, set_up
from tests.servers import Server


@pytest.mark.parametrize(
    ("javascript", "words"),
    [(True, "Times are in Asia/Tokyo (UTC+9)."), (False, "Times are in UTC.")],
)
def test_the_time_zone_is_the_browsers(
    chromium: Browser, server: Server, tmp_path: Path, javascript: bool, words: str
) -> None:
    with chromium.new_context(
        base_url=server.url, timezone_id="Asia/Tokyo", java_script_enabled=javascript
    ) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        set_up(page)
        expect(page.get_by_role("contentinfo")).to_contain_text(words)
