"""The check-up: security habits, checked against an organization’s keys."""
