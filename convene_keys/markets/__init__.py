"""The season: markets, dates, vendors, applications and bookings."""
