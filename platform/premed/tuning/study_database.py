"""The database of Optuna's studies: opened, and made by one of several commands that start at once."""

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

TRIES, PAUSE = 40, 0.25  # for which a command waits for another one that makes the tables; seconds


def open_database(url: str) -> "RDBStorage":
    """Optuna's storage at a URL, whose tables are made if they are missing."""
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import DBAPIError, IntegrityError

    for left in reversed(range(TRIES)):
        try:
            return RDBStorage(url, engine_kwargs=engine_settings(url))
        except DBAPIError as error:  # Optuna looks which tables are missing, and then makes them
            is_made = isinstance(error, IntegrityError) or "already exists" in str(error)
            if not (left and is_made):
                raise
            time.sleep(PAUSE)
    raise AssertionError("the last try returns or raises")


def engine_settings(url: str) -> dict[str, Any]:
    """SQLAlchemy's settings: SQLite waits while another command reads or writes, instead of raising."""
    return {"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {}
