"""How many of our files a click and a call pass, and how deep: `python -m tests.hops`."""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from flask_migrate import upgrade

from convene_keys import create_app
from convene_keys.db.session import db
from tests import factories
from tests.conftest import new_browser
from tests.databases import environ

PACKAGE = str(Path(__file__).parent.parent / "convene_keys")


class Hops:
    """Traces what `act` calls of ours: the files, the calls, and how many lie on each other at most."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self.files: set[str] = set()
        self.calls = self.depth = self._now = 0
        sys.setprofile(self._see)
        try:
            act()
        finally:
            sys.setprofile(None)

    def _see(self, frame: FrameType, event: str, _argument: object) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE) or event not in ("call", "return"):
            return
        self._now += 1 if event == "call" else -1
        if event == "call":
            self.files.add(file.removeprefix(PACKAGE + "/"))
            self.calls += 1
            self.depth = max(self.depth, self._now)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(environ(f"sqlite:///{folder}/hops.db"))
        app.config["WTF_CSRF_ENABLED"] = False
        with app.app_context():
            upgrade()
            organization = factories.organization()
            factories.market_data(organization)
            maya = factories.member(organization)
            browser = new_browser(app)
            browser.sign_in(maya)
            ways: dict[str, Callable[[str, int], Any]] = {
                "revoke": lambda _, key_id: browser.post(
                    f"/admin/api_keys/{key_id}/revoke", headers={"HX-Request": "true"}
                ),
                "a key's read": lambda secret, _: browser.get(
                    "/api/v1/admin/bookings", headers={"X-API-Key": secret}
                ),
            }
            for name, way in ways.items():
                for warm in (True, False):
                    key, secret = factories.api_key(organization, f"{name} {warm}", creator=maya)
                    key_id = key.id
                    found = Hops(lambda way=way, s=secret, k=key_id: way(s, k))
                print(f"{name}: {len(found.files)} files, {found.calls} calls, depth {found.depth}")
                print("  " + " ".join(sorted(found.files)))
            db.session.remove()
            db.engine.dispose()


if __name__ == "__main__":
    main()
