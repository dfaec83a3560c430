"""The audit log: who did what, kept so that a change of it is found."""
