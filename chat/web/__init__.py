"""Where HTTP and WebSocket meet the log: identity, limits, sockets, the API and the pages."""
