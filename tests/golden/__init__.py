"""What has to stay byte for byte, written down: `python -m tests.golden` writes it anew."""
