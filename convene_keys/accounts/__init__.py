"""People: members, their organizations, passwords, sessions and links."""
