"""What `tracking` keeps out of everything that is stored: names of cases and patients, pictures."""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from premed.config.settings import Tracking
from premed.contracts import Row, Sample
from premed.errors import UserError
from premed.paths import ensure_home
from premed.safety.pseudonyms import make_key, pseudonym

NAMED = ("case", "patient")
"""The columns of a table of scores that hold names."""
PLACES, USUAL = ("table", "listing", "prefix"), ("", "labels.csv", "dataset.json")
"""Fields of a task that name files and folders, and values of them that name nobody."""


@dataclass(frozen=True)
class Privacy:
    """The settings of an experiment, with the key of its hashes. The workers receive it pickled."""

    key: bytes | None = field(default=None, repr=False)
    """None: names are stored as they are."""
    pictures: bool = True

    @classmethod
    def of(cls, tracking: Tracking) -> "Privacy":
        """Makes the key in PREMED_HOME, where it is needed and missing. Raises UserError if that fails."""
        try:
            return cls(make_key(ensure_home()) if tracking.hash_ids else None, tracking.pictures != "none")
        except (OSError, ValueError) as error:
            raise UserError(f"tracking.hash_ids: {ensure_home() / 'id_key'} cannot be used ({error})") from None

    def name(self, name: str) -> str:
        return name if self.key is None else pseudonym(self.key, name)

    def rows(self, rows: Iterable[Row]) -> list[Row]:
        """Rows of scores."""
        return [{name: self.name(str(v)) if name in NAMED else v for name, v in row.items()} for row in rows]

    def samples(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Samples whose pictures are drawn, with their names as titles."""
        if self.key is None:
            return samples
        cases = [replace(each.case, name=self.name(each.case.name), patient="") for each in samples]
        return [each._replace(case=case) for each, case in zip(samples, cases, strict=True)]

    def fields(self, tree: Any) -> Any:
        """The fields of an experiment: `task.split` lists names, `task.exclude` files, and `PLACES` are files, too."""
        if isinstance(tree, Mapping):
            hide = dict.fromkeys(("split", "exclude"), self._listed) | dict.fromkeys(PLACES, self._place)
            return {name: hide.get(name, self.fields)(value) for name, value in tree.items()}
        return [self.fields(each) for each in tree] if isinstance(tree, list) else tree

    def without_names(self, tree: Any) -> Any:
        """The same without `root`, the fields that `fields` would hash, and lists in which there are such; `tree` where
        names are stored."""
        if self.key is None or not isinstance(tree, Mapping):
            return tree
        left = {}
        for name, value in tree.items():
            named = name == "root" or (not isinstance(value, Mapping) and self.fields({name: value}) != {name: value})
            hides = isinstance(value, list) and any(self.without_names(each) != each for each in value)
            if not (named or hides or name in ("split", "exclude")):
                left[name] = self.without_names(value)
        return left

    def _place(self, value: Any) -> Any:
        return self.name(value) if isinstance(value, str) and value not in USUAL else value

    def _listed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {part: self._listed(names) for part, names in value.items()}
        return [self.name(str(each)) for each in value] if isinstance(value, (list, tuple)) else value

    def traceback(self, error: BaseException) -> str:
        """Of an exception that was raised: without its message, which may name a file, where names are hashed."""
        if self.key is None:
            return "".join(traceback.format_exception(error))
        return f"{''.join(traceback.format_tb(error.__traceback__))}{type(error).__name__}\n"

    def tags(self, tags: dict[str, str]) -> dict[str, str]:
        """Tags of a run: the message of a failure names a file, or a step's images."""
        if self.key is None or "premed.failure" not in tags:
            return tags
        return tags | {"premed.failure": "not stored (tracking.hash_ids): it may name a file"}
