"""What a User-Agent header says of a client or a device, in a few words."""

import re
from functools import lru_cache

NAME_MAX = 40
UNKNOWN, BROWSER = "unknown", "browser"
# Whose calls come from its maker's many machines, so that an address tells nothing of it.
_CLOUD = ("chatgpt", "openai", "claude-user")
# The beginnings of names that tell a key's tool. Node is in neither, since bridges to assistants
# run on it as well as scripts do.
_TOOLS = {
    "claude": ("claude", "anthropic", "convene-keys-extension"),
    "chatgpt": ("chatgpt", "openai"),
    "developer": (
        *("curl", "wget", "httpie", "python", "aiohttp", "httpx", "okhttp", "go-http-client"),
        *("axios", "guzzlehttp", "ruby", "faraday", "libwww-perl", "postmanruntime", "insomnia"),
        *("java", "powershell", "windowspowershell"),
    ),
}
_FIRST = re.compile(r"[^\s/(;,]+")
_COMPATIBLE = re.compile(r"compatible; ([^\s/(;,]+)")  # how what is no browser says so


@lru_cache(1_024)
def kind(user_agent: str | None) -> str:
    """The first word of a user agent, in lower case and without its version: `python-requests`."""
    found = _FIRST.match(user_agent or "")
    name = found[0].lower()[:NAME_MAX] if found else UNKNOWN
    if name != "mozilla":
        return name
    other = _COMPATIBLE.search(user_agent or "")
    return other[1].lower()[:NAME_MAX] if other else BROWSER


def is_cloud(client: str) -> bool:
    """Whether a client of this kind calls from many addresses by nature."""
    return client.startswith(_CLOUD)


def tool(client: str) -> str | None:
    """The tool whose client this kind is, where the name tells."""
    for name, beginnings in _TOOLS.items():
        if client.startswith(beginnings):
            return name
    return None


# The first that is found counts: most browsers also name those they descend from.
_BROWSERS = (
    ("Edg", "Edge"),
    ("OPR/", "Opera"),
    ("SamsungBrowser", "Samsung Internet"),
    ("Firefox", "Firefox"),
    ("FxiOS", "Firefox"),
    ("CriOS", "Chrome"),
    ("Chrome", "Chrome"),
    ("Safari", "Safari"),
)
_SYSTEMS = (
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Android", "Android"),
    ("Windows", "Windows"),
    ("CrOS", "Chromebook"),
    ("Macintosh", "Mac"),
    ("Linux", "Linux"),
)


def device(user_agent: str | None) -> str:
    """`Firefox on Windows`; what can't be told is said so."""
    text = user_agent or ""
    browser = next((name for mark, name in _BROWSERS if mark in text), None)
    system = next((name for mark, name in _SYSTEMS if mark in text), None)
    if browser is None and system is None:
        return "Unknown device"
    return f"{browser or 'Unknown browser'} on {system or 'an unknown device'}"
