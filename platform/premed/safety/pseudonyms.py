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

from premed.errors import UserError

FILE = "id_key"
WHOLE = re.compile(r"[0-9a-f]{64}")
HASHED = re.compile(r"id-[0-9a-f]{16}")


def read_key(folder: Path) -> bytes | None:
    """The key in the folder of premed's state; None if there is none. Raises UserError for one that is not whole: with
    half a key, or none, names could be found from their hashes."""
    try:
        text = (folder / FILE).read_text(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{folder / FILE}: cannot be read ({error.strerror})") from None
    if not WHOLE.fullmatch(text.strip()):
        remedy = "copy it from a backup, or remove it, and names get other hashes from then on"
        raise UserError(f"{folder / FILE}: is damaged (a key has 64 hexadecimal digits); {remedy}")
    return bytes.fromhex(text)


def make_key(folder: Path) -> bytes:
    """The key in the folder of premed's state, which is made if it is missing. Raises OSError if it cannot be made.

    Linked into place whole, since commands that start together must have one.
    """
    if (key := read_key(folder)) is None:
        made = folder / f".{FILE}.{secrets.token_hex(4)}"
        with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with suppress(FileExistsError):
            os.link(made, folder / FILE)
        made.unlink()
        key = read_key(folder)
    assert key is not None
    return key


def pseudonym(key: bytes, name: str) -> str:
    """The hash of a name; of a hash, itself."""
    if HASHED.fullmatch(name):
        return name
    return f"id-{hmac.new(key, name.encode(errors='surrogateescape'), hashlib.sha256).hexdigest()[:16]}"
