"""What is in memory now: rooms with their tails, cursors, and the relay between processes.

All of it can be lost at any moment and is read again from the log. `chat.web` calls it; it calls
`chat.log`.
"""
