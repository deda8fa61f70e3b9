"""Cross-validation: the labelled patients are dealt to folds, each of which is the test part once.

With few patients, the test part of one split says little: scored by five networks, each without its fold, all of them
count. `premed compare` pools the folds of one training (`reporting.comparison.folds`).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Self

from pydantic import model_validator

from premed.config.spec import Spec, added_field
from premed.data.splits import assign_patients, carve_patients, shuffled_patients
from premed.errors import UserError
from premed.rng import key as stable_key


class FoldSettings(Spec):
    """The fields of a task that can be cross-validated, besides its `split_seed` and `shares`."""

    folds: int | None = added_field(None, ge=2)
    """Cross-validation: so many folds of the labelled patients, dealt by `split_seed`, in place of columns and
    `shares`. `fold` is the test part; of the rest, val has its share of train and val in `shares`. None: one split."""
    fold: int | None = added_field(None, ge=0)
    """The fold that is the test part, from 0 on; a list, fold=[0,1,2,3,4], makes an experiment of each."""

    @model_validator(mode="after")
    def _is_a_fold(self) -> Self:
        listed: Any = getattr(self, "split", None)
        if self.folds is None and self.fold is not None:
            raise ValueError("fold needs folds, as in folds=5")
        if self.folds is not None and listed is not None:
            raise ValueError("folds and split exclude each other: split lists the parts")
        if self.folds is not None and self.fold is None:
            every = ",".join(map(str, range(self.folds)))
            raise ValueError(f"folds needs fold, the test part: fold=0, or fold=[{every}] for all")
        if self.folds is not None and self.fold is not None and self.fold >= self.folds:
            raise ValueError(f"fold: {self.fold} is not one of 0 to {self.folds - 1}")
        return self


def assign_parts(
    patients: Iterable[str], folds: int | None, fold: int | None, shares: Sequence[float], key: int
) -> dict[str, str]:
    """Returns the part of each patient: by `shares`, of train, val and test, or with `folds` that fold is test, and the
    first two shares divide the rest.

    The folds do not depend on which of them is test, and their sizes differ by one patient at most. Raises UserError
    if a part of a cross-validation would be empty.
    """
    if folds is None or fold is None:
        return assign_patients(patients, shares, key)
    order = shuffled_patients(patients, key)
    if 0 < len(order) < max(folds, 4):  # of four in two folds, one is val and one is train
        raise UserError(f"task.folds: {len(order)} labelled patients are too few for {folds} folds; set fewer")
    test = set(order[fold::folds])
    rest = [who for who in order if who not in test]
    val = carve_patients(rest, shares[1] / sum(shares[:2]), stable_key(key, "val of fold", fold))
    return {who: "test" if who in test else "val" if who in val else "train" for who in order}
