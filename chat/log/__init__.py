"""The durable truth: rooms, their logs, users and sessions, in SQLite or PostgreSQL."""
