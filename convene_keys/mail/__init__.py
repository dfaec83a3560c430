"""Mail: what it says, the outbox it waits in, and how it is sent."""
