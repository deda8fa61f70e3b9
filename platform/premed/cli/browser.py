"""A page in the person's browser, where there is a desktop. `python -m premed.cli.browser URL` waits for its server."""

import os
import socket
import sys
import time
import urllib.parse
import webbrowser

PATIENCE = 120.0
"""Seconds until a server that starts must answer."""


def has_desktop() -> bool:
    """Whether somebody sits before this terminal and a desktop."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ


def open_when_served(url: str, patience: float = PATIENCE) -> bool:
    """Opens the URL as soon as its server takes connections. Returns whether it did, within `patience` seconds."""
    parts = urllib.parse.urlsplit(url)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            socket.create_connection((parts.hostname or "", parts.port or 80), timeout=1).close()
            return webbrowser.open(url)
        except OSError:
            time.sleep(0.2)
    return False


if __name__ == "__main__":
    try:
        open_when_served(sys.argv[1])
    except KeyboardInterrupt:  # the server was ended before it answered
        sys.exit(130)
