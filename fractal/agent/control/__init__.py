"""The agent's control API: HTTP and JSON over a Unix socket, the only way in for the command line and the web page."""
