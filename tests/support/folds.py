"""Runs of the folds of a cross-validation, to compare, in memory."""

from support.comparing import add

FOLDS = 3


def of_fold(rows, fold):
    """The rows of other cases and patients in each fold."""
    return [row | {"case": f"f{fold}{row['case']}", "patient": f"f{fold}{row['patient']}"} for row in rows]


def add_fold(store, strategy, seed, fold, rows, **more):
    task = {"name": "images", "folds": FOLDS, "fold": fold}
    data = f"train:cc{fold} val:dd{fold}"
    more = {"data": data, "test": f"ee{fold}", "change": {"task": task}, **more}
    return add(store, strategy, seed, of_fold(rows, fold), **more)
