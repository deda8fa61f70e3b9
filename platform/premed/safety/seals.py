"""Records that hold a hash of themselves: one whose numbers have changed on a disk is not believed.

The hash is at `hashes.<name>`; a record without one is older, and believed.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def own_hash(record: Mapping[str, Any], name: str) -> str:
    """The SHA-256 of a record without its own hash, which is called `name`."""
    hashes = {other: value for other, value in record.get("hashes", {}).items() if other != name}
    return hashlib.sha256(json.dumps({**record, "hashes": hashes}, sort_keys=True).encode()).hexdigest()


def sealed(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The record with its own hash, as JSON gives it back."""
    about = json.loads(json.dumps({"hashes": {}, **record}))
    about["hashes"][name] = own_hash(about, name)
    return about


def is_sealed(record: Any, name: str) -> bool:
    """Whether it is a record that is as it was sealed, or an older one."""
    if not isinstance(record, dict) or not isinstance(hashes := record.get("hashes", {}), dict):
        return False
    return name not in hashes or hashes[name] == own_hash(record, name)
