"""Keys that got out: reports of them, their signatures, and a scanner for files."""
