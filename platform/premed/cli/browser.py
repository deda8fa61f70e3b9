"""Addresses that are told, and opened where there is a desktop, once their server answers.

`python -m premed.cli.browser PID BASE URL LINE…` waits for the server at BASE, which its parent PID becomes, prints the
lines on stderr, and opens URL unless that is empty. It ends without them if its parent ends.
"""

import os
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence

PAUSE = 0.2  # seconds between two questions


def has_desktop() -> bool:
    """Whether somebody sits before this terminal and a desktop."""
    screen = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return bool(screen) and sys.stdout.isatty() and "SSH_CONNECTION" not in os.environ


def answers(base: str) -> bool:
    """Whether a server answers a request, with whatever status: MLflow's takes connections long before it does."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is on this machine
    try:
        direct.open(base, timeout=5).close()
    except urllib.error.HTTPError as error:
        error.close()
    except (OSError, ValueError):
        return False
    return True


def tell_when_served(parent: int, base: str, url: str, lines: Sequence[str]) -> bool:
    """Prints the lines and opens the URL as soon as the server answers. Returns False if the parent process ends first.

    parent: its id. url: empty: nothing is opened.
    """
    while not answers(base):
        if os.getppid() != parent:
            return False
        time.sleep(PAUSE)
    print("\n".join(lines), file=sys.stderr, flush=True)
    if url:
        webbrowser.open(url)
    return True


if __name__ == "__main__":
    try:
        tell_when_served(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
    except KeyboardInterrupt:  # the server was ended before it answered
        sys.exit(130)
