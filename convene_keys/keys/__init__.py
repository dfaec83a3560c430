"""API keys: made, found, and recognized when a call carries one."""
