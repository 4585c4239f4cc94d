"""Running the chat: the server, its health, figures and log."""
