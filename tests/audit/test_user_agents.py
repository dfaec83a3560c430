"""Which kind of client a user agent tells of."""

import pytest

from convene_keys.audit import user_agents


@pytest.mark.parametrize(
    ("user_agent", "kind"),
    [
        ("python-requests/2.32", "python-requests"),
        ("Claude-Desktop/1.0 (darwin)", "claude-desktop"),
        ("claude-desktop convene-keys/1.0", "claude-desktop"),
        ("curl", "curl"),
        ("Bot(inside)", "bot"),
        ("Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0", "browser"),
        (
            "Mozilla/5.0 AppleWebKit/537.36; compatible; ChatGPT-User/1.0; +https://x",
            "chatgpt-user",
        ),
        ("Mozilla/5.0 (compatible; Claude-User/1.0)", "claude-user"),
        ("x" * 200, "x" * 40),
        ("Mozilla/5.0 (compatible; " + "Y" * 200, "y" * 40),
        ("/1.0", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_kind(user_agent: str | None, kind: str) -> None:
    assert user_agents.kind(user_agent) == kind


def test_some_kinds_tell_of_a_tool_and_some_come_from_a_cloud() -> None:
    kinds = ("claude-desktop", "claude-user", "chatgpt-user", "curl", "browser", "node", "unknown")
    told = [user_agents.tool(kind) for kind in kinds]
    assert told == ["claude", "claude", "chatgpt", "developer", None, None, None]
    assert [user_agents.is_cloud(kind) for kind in kinds] == [False, True, True] + [False] * 4
