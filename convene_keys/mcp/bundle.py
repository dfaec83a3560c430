"""The desktop extension for Claude: a bridge to this site's `/mcp`, as an MCP Bundle.

The same file for everybody: the site's address is in it, and Claude asks for the key when it is
installed. Source: github.com/modelcontextprotocol/mcpb, "MANIFEST.md", version 0.2, the oldest that
says all there is to say.
"""

import json
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path

from convene_keys.mcp import catalogue
from convene_keys.mcp.methods import VERSION
from convene_keys.operations.schemas import Json
from convene_keys.operations.table import OPERATIONS

NAME = "convene-keys.mcpb"
FOLDER = Path(__file__).parent / "extension"
MANIFEST, BRIDGE, ICON = "manifest.json", "server/index.js", "icon.png"


@cache
def bundle(site: str) -> bytes:
    """The bundle for the product at the address `site`; the same bytes every time."""
    files = {
        MANIFEST: json.dumps(manifest(site), ensure_ascii=False, indent=2).encode(),
        **{name: (FOLDER / name).read_bytes() for name in (BRIDGE, ICON)},
    }
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # whose time is the first of 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # a file that all may read
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def manifest(site: str) -> Json:
    """What Claude reads of the extension: the file beside it, and what only this site knows."""
    told: Json = json.loads((FOLDER / MANIFEST).read_text(encoding="utf-8"))
    told["server"]["mcp_config"]["env"]["CONVENE_URL"] = site
    told["user_config"]["api_key"]["description"] = (
        f"Begins with fm_org_. Make one for this computer at {site}/admin/api_keys"
    )
    return told | {
        "version": VERSION,
        "homepage": site,
        "documentation": f"{site}/help/keys",
        "tools": [{"name": o.name, "description": o.description} for o in OPERATIONS],
        "prompts": [
            {name: prompt[name] for name in ("name", "description", "text")}
            for prompt in catalogue.PROMPTS.values()
        ],
    }
