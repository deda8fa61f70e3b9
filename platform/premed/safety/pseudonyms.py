"""Keyed hashes in place of the names of cases and patients: `tracking.hash_ids`.

The key is PREMED_HOME/id_key. Who has it can find a name's hash, and nobody can find a hash's name; with one key the
same name has the same hash everywhere, so that runs are still compared case by case.
"""

import hashlib
import hmac
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

FILE = "id_key"
HASHED = re.compile(r"id-[0-9a-f]{16}")


def read_key(folder: Path) -> bytes | None:
    """The key in the folder of premed's state; None if there is none."""
    try:
        return bytes.fromhex((folder / FILE).read_text()) or None
    except (OSError, ValueError):
        return None


def make_key(folder: Path) -> bytes:
    """The key in the folder of premed's state, which is made if it is missing. Raises OSError if it cannot be.

    Linked into place whole, since commands that start together must have one.
    """
    if (key := read_key(folder)) is None:
        made = folder / f".{FILE}.{secrets.token_hex(4)}"
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(made, folder / FILE)
        made.unlink()
        key = bytes.fromhex((folder / FILE).read_text())
    return key


def pseudonym(key: bytes, name: str) -> str:
    """The hash of a name; of a hash, itself."""
    if HASHED.fullmatch(name):
        return name
    return f"id-{hmac.new(key, name.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:16]}"
