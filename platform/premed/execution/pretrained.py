"""A finished pre-training in place of one of the experiment's own: found by its name, refused where it does not fit.

The fine-tuning must feed its encoder as the pre-training did. What the YAML says of the encoder, the strategy and the
pre-training must be what it was made with: else the experiment would be recorded as another one.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from premed.config.experiment import Experiment
from premed.config.image_processing import Preprocessing
from premed.config.plugins import plugin
from premed.config.settings import Pretrain, Pretrained
from premed.config.spec import canonical, first_error
from premed.contracts import Task
from premed.errors import UserError
from premed.tracking.pretrainings import FinishedPretraining, find_pretraining
from premed.tracking.run_store import open_store
from premed.training.privacy import Privacy

FIELD = "pretrain.encoder"
TASK_FIELDS = {"size": "stored"}
"""Fields of a Preprocessing that tasks call otherwise."""


class Pretrainings:
    """The finished pre-trainings that a command's experiments name, each looked up in MLflow once. Thread-safe.

    So a name that moves meanwhile (models:/NAME@ALIAS) is one encoder in all of the command, and an outage of MLflow
    after the command's start fails none of its experiments.
    """

    def __init__(self) -> None:
        self.found: dict[str, FinishedPretraining] = {}
        self.lock = threading.Lock()

    def __call__(self, reference: str) -> FinishedPretraining:
        """Returns the pre-training of that name. Raises UserError, which names the field, if there is none."""
        with self.lock:
            if reference not in self.found:
                self.found[reference] = find_pretraining(open_store(), reference, FIELD)
            return self.found[reference]

    def pinned(self, experiment: Experiment) -> Experiment:
        """The experiment with the digest of its pre-training in place of a name."""
        if (given := experiment.pretrained) is None:
            return experiment
        named = given.model_copy(update={"encoder": self(given.encoder).digest})
        return experiment.model_copy(update={"pretrain": named})


def settle_pretrained(
    experiment: Experiment, task: Task, pretrainings: Pretrainings
) -> tuple[Experiment, FinishedPretraining | None]:
    """Returns the experiment with the digest and the settings of the finished pre-training that it names, and that one.

    Raises UserError, which names the field, if there is none or it does not fit.
    """
    given = experiment.pretrained
    if given is None:
        return experiment, None
    found = pretrainings(given.encoder)
    where, card = f"{FIELD}: {given.encoder}", found.record["card"]
    if (strategy := found.record["pretext"]["name"]) != experiment.strategy:
        raise UserError(f"pretext: is {experiment.strategy}, and {where} was made by {strategy}; make it that")
    try:
        pretext = plugin("pretext", strategy).Config.model_validate(found.record["pretext"])
        pretrain = Pretrain.model_validate(found.record["pretrain"])
        stated = Pretrain.model_validate(found.record["pretrain"] | given.stated)
        encoder = plugin("encoders", card["encoder"]).Config.model_validate(card["encoder"])
    except ValueError as error:  # pydantic's ValidationError is one
        what = ": ".join(first_error(error)) if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{where}: does not go with what the YAML says, or this version: {what}") from None
    privacy = Privacy.of(experiment.tracking)  # names in the record may be hashes
    theirs: dict[str, Any] = {
        "encoder": (experiment.encoder, encoder, None),
        "pretext": (experiment.pretext, pretext, experiment.pretext.model_dump(exclude_unset=True)),
        "pretrain": (stated, pretrain, given.stated),
    }
    for name, (ours, its, only) in theirs.items():
        ours, its = (privacy.fields(as_json(each)) for each in (ours, its))
        for field, one, other in differences(ours, its, only, name):
            raise UserError(f"{field}: is {one}, and {where} was made with {other}; make it that, or leave it out")
    refuse_other_preparation(task, card, where)
    named = Pretrained(encoder=found.digest, seed=pretrain.seed)
    return experiment.model_copy(update={"pretext": pretext, "pretrain": named}), found


def as_json(spec: Any) -> Any:
    """The fields of a Spec that change a result."""
    return json.loads(canonical(spec))


def differences(ours: Any, theirs: Any, only: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields the fields in which two trees differ, by their dotted path, with both values.

    only: a tree of the fields that count; None: all.
    """
    if not (isinstance(ours, Mapping) and isinstance(theirs, Mapping)):
        if ours != theirs:
            yield path, json.dumps(ours), json.dumps(theirs)
        return
    for name in sorted({*ours, *theirs}, key=lambda name: (name != "name", name)):  # another plug-in is told as such
        if only is None or (isinstance(only, Mapping) and name in only):
            inner = only[name] if isinstance(only, Mapping) and isinstance(only[name], Mapping) else None
            yield from differences(ours.get(name), theirs.get(name), inner, f"{path}.{name}")


def refuse_other_preparation(task: Task, card: Mapping[str, Any], where: str) -> None:
    """Raises UserError if none of the pre-training's data sets was prepared as the task's images are."""
    ours = task.preprocessing.model_dump(mode="json")
    misfits = []
    for source in card.get("sources") or [card]:
        theirs = Preprocessing.model_validate(source["preprocessing"]).model_dump(mode="json")
        misfits.append(([field for field in ours if ours[field] != theirs[field]], theirs, source["task"]))
    fields, theirs, name = min(misfits, key=lambda misfit: ("dims" in misfit[0], len(misfit[0])))
    if fields:
        first, *rest = [TASK_FIELDS.get(str(field), str(field)) for field in fields]
        more = f" ({', '.join(rest)} too)" if rest else ""
        one, other = (json.dumps(each[fields[0]]) for each in (ours, theirs))
        what = f"is {one}, and {where} was pre-trained with {other} on {name}{more}"
        raise UserError(f"task.{first}: {what}; prepare the images alike")
