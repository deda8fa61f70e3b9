"""MLflow's model registry: models without pickle, for any batch size.

Of fine-tuned networks the alias `best` marks the highest score on the images of val that the last one was scored on; of
encoders, which have no score, `newest` marks the last.
"""

import gc
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from premed.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from mlflow import MlflowClient

BEST, NEWEST = "best", "newest"
UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")
"""MLflow's error codes for a model or version that does not exist."""
_SCORE, _VAL = "premed.score", "premed.val"
GRAPH = 16_000_000  # bytes of a model without its weights: 0.9 MB of a ViT-B, 11 MB of primus-l
MOST_MODELS, LISTED = 100, 6  # that are looked through for a message, and that it names


def export(module: "torch.nn.Module", example: "np.ndarray", card: dict[str, Any], folder: Path) -> None:
    """Writes `module`, in evaluation mode, as MLflow's folder of a model, which `register` takes.

    `module`: float32 on the CPU. `example` [2, C, *S] float32: the export runs it once; a batch of one would fix the
    batch size. `card`: JSON, kept as the model's metadata.
    """
    import mlflow
    import numpy as np
    import torch
    from mlflow import pytorch
    from mlflow.models import infer_signature

    wrong = {
        f"{p.dtype} on {p.device}"
        for p in module.parameters()
        if str(p.dtype) != "torch.float32" or p.device.type != "cpu"
    }
    if wrong:
        raise ValueError(f"parameters must be float32 on the CPU, not {', '.join(sorted(wrong))}")
    if len(example) < 2:
        raise ValueError(f"the example needs a batch of 2, not {len(example)}")
    require_room(folder.parent, sum(p.nbytes for p in module.state_dict().values()) + GRAPH)
    example = np.ascontiguousarray(example, np.float32)
    with torch.no_grad():
        output = module.eval()(torch.from_numpy(example)).numpy()
    with _freeing_the_trace():
        pytorch.save_model(
            module,
            str(folder),
            signature=infer_signature(example, output),  # the first axis is free, the others are fixed
            input_example=(example,),  # in a tuple it is traced and not kept: a volume as JSON text is 100 MB
            pip_requirements=[
                f"mlflow=={mlflow.__version__}",
                f"torch=={torch.__version__.partition('+')[0]}",
                f"numpy=={np.__version__}",
            ],  # else MLflow loads the model in another process to infer them
            serialization_format="pt2",
            metadata=card,
        )


def require_room(folder: Path, needed: int) -> None:
    """Raises UserError if there are fewer bytes free. torch ends the process, and all that trains in it, where a disk
    is full while it writes a model."""
    if (free := shutil.disk_usage(folder).free) < needed:
        numbers = f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB free"
        raise UserError(f"{folder}: {numbers}; make room there, or set TMPDIR to a larger disk")


@contextmanager
def _freeing_the_trace() -> Iterator[None]:
    """Frees what torch.export keeps of each trace, about half a megabyte.

    A ShapeEnv lists the inputs it was made for and remembers operations on them; their sizes refer to it from C++,
    where Python's garbage collector cannot see the cycles (as in pytorch/pytorch#193015, of torch.compile). And torch
    remembers all calls of its methods.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    def environments() -> list[ShapeEnv]:
        return [each for each in gc.get_objects() if type(each) is ShapeEnv]

    before = {id(each) for each in environments()}
    try:
        yield
    finally:
        for each in environments():
            if id(each) not in before:
                each.tracked_fakes = None
                each.fake_tensor_cache.clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()


def registered_name(name: str) -> str:
    """Returns a name as the registry takes it, without what ends a name in a reference or a filter."""
    return re.sub("[/:'\"]", "-", name)


def register(
    client: "MlflowClient", run_id: str, name: str, folder: Path, score: float | None, warn: Callable[[str], None]
) -> str:
    """Registers an exported network as a new version of the model `name`; returns the version.

    `score`: the validation score, higher is better; None: an encoder's. `warn` is called with a sentence if versions
    with a score of other images are no longer in question for `best`.
    """
    from mlflow.entities import LoggedModelOutput

    run, name = client.get_run(run_id), registered_name(name)
    digest = run.data.tags.get("premed.digest", "")
    tags = {"premed.digest": digest} | ({} if score is None else {_SCORE: repr(score), _VAL: _val_images(run)})
    # MLflow refuses more characters here than in the name of a registered model: a folder may be called scans.v2
    logged = client.create_logged_model(run.info.experiment_id, re.sub("[.%]", "-", name), run_id, tags=tags)
    try:
        _name(folder, logged, run_id)
        client.log_model_artifacts(logged.model_id, str(folder))
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, 0)])  # else the UI's page of the run shows no model
    version = _promote(client, name, logged, run, tags | {"premed.run": run_id})
    if score is None:
        client.set_registered_model_alias(name, NEWEST, version)
    else:
        _point_best(client, name, version, warn)
    return version


def version_of(client: "MlflowClient", run_id: str) -> str | None:
    """Returns `models:/NAME/VERSION` of a run's registered model; None if it has none."""
    found = client.search_model_versions(f"run_id = '{run_id}'", max_results=1)
    return f"models:/{found[0].name}/{found[0].version}" if found else None


def _name(folder: Path, logged: Any, run_id: str) -> None:
    """Writes into the folder of a model which one it is, as MLflow does that saves it with its names."""
    from mlflow.models import Model

    model = Model.load(folder / "MLmodel")
    model.run_id, model.artifact_path = run_id, logged.artifact_location
    model.model_uuid = model.model_id = logged.model_id
    model.save(folder / "MLmodel")


def _promote(client: "MlflowClient", name: str, logged: Any, run: Any, tags: dict[str, str]) -> str:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    # a server refuses a path as the source; a database resolves `models:/` at the global URI, which may be another
    source = f"models:/{logged.model_id}" if client.tracking_uri.startswith("http") else logged.artifact_location
    about = {"description": run.info.run_name, "tags": tags, "model_id": logged.model_id}
    version = client.create_model_version(name, source, run.info.run_id, **about).version
    shown = json.dumps([{"name": name, "version": version}])
    client.set_logged_model_tags(logged.model_id, {"mlflow.modelVersions": shown})  # the UI's link from run to version
    return str(version)


def _point_best(client: "MlflowClient", name: str, newest: str, warn: Callable[[str], None]) -> None:
    """Sets the alias from all versions, so that two runs that end together agree; of equal scores the older wins.

    Only scores of the same images are compared: those of the version `newest`. Two folders of one name, or one to which
    patients were added, are scored on others.
    """

    def rank(version: Any) -> tuple[float, int]:
        score = float(version.tags.get(_SCORE, "nan"))
        return (-math.inf if math.isnan(score) else score), -int(version.version)

    versions = {str(each.version): each for each in client.search_model_versions(f"name = '{name}'")}
    images = {
        number: each.tags[_VAL] if _VAL in each.tags else _val_images_of(client, each)
        for number, each in versions.items()
    }
    others = [number for number in versions if images[number] != images[newest]]
    best = max((each for number, each in versions.items() if number not in others), key=rank)
    before = client.get_registered_model(name).aliases.get(BEST)
    client.set_registered_model_alias(name, BEST, best.version)
    if str(before) in others:
        warn(
            f"models:/{name}@{BEST} was version {before} and is {best.version} now: {len(others)} of {len(versions)} "
            f"versions were scored on other images of val (changed data, another fold, or another folder of that name)"
        )


def _val_images(run: Any) -> str:
    """The fingerprint of the images that a fine-tuning was scored on; empty if its run has none."""
    parts = dict(part.split(":", 1) for part in run.data.tags.get("premed.data", "").split() if ":" in part)
    return parts.get("val", "")


def _val_images_of(client: "MlflowClient", version: Any) -> str:
    """The same of a version that was registered without it, which then has it: asked for each version once."""
    from mlflow.exceptions import MlflowException

    if not version.run_id:  # registered by hand
        return ""
    try:
        found = _val_images(client.get_run(version.run_id))
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        return ""  # its run is gone
    client.set_model_version_tag(version.name, str(version.version), _VAL, found)
    return found


def run_of(client: "MlflowClient", reference: str) -> str:
    """Returns the id of the run of `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Raises UserError if unknown."""
    from mlflow.exceptions import MlflowException

    name, mark, version = reference.removeprefix("models:/").rpartition("@" if "@" in reference else "/")
    if not (name and version):
        form = f"write models:/NAME@{BEST} or models:/NAME/VERSION"
        raise UserError(f"{reference}: names no model; {form}{proposals(client, reference)}")
    try:
        get = client.get_model_version_by_alias if mark == "@" else client.get_model_version
        run_id = get(registered_name(name), version).run_id
    except MlflowException as error:
        if error.error_code not in UNKNOWN:
            raise
        raise UserError(f"{reference}: no such model or version{proposals(client, reference)}") from None
    if not run_id:
        raise UserError(f"{reference}: has no run in its metadata; name the run itself")
    return run_id


def proposals(client: "MlflowClient", reference: str) -> str:
    """What `reference` may have meant, and which models there are, as the end of a message."""
    listed = references(client)
    if not listed:
        return "; no model is registered here: set PREMED_HOME or MLFLOW_TRACKING_URI, or run an experiment"
    guess = nearest(reference, listed)
    more = f" and {len(listed) - LISTED} more (`premed ui` lists them under Models)" if len(listed) > LISTED else ""
    there_are = f"here are {', '.join(listed[:LISTED])}{more}"
    return f"; did you mean {guess}? T{there_are}" if guess else f"; t{there_are}"


def nearest(reference: str, listed: Sequence[str]) -> str | None:
    """The one of `references` that is most like `reference`, with or without `models:/`; None if none is."""
    bare = re.sub("^models?:/*", "", reference)
    by_name = {each.removeprefix("models:/"): each for each in listed}
    of_model = [each for each in by_name if re.split("[@/]", each)[0] == re.split("[@/]", bare)[0]]
    if (best := f"{bare}@{BEST}") in of_model:  # a model's name alone
        return by_name[best]
    found = get_close_matches(bare, of_model or by_name, n=1) or of_model
    return by_name[found[0]] if found else None


def references(client: "MlflowClient") -> list[str]:
    """How each registered model is referred to: `models:/NAME@ALIAS`, and `models:/NAME/VERSION` of its newest."""
    try:
        models = client.search_registered_models(max_results=MOST_MODELS)
    except Exception:  # noqa: BLE001 - a server may have no registry, and this only helps a message
        return []
    found = []
    for model in models:
        found += [f"models:/{model.name}@{alias}" for alias in sorted(model.aliases)]
        versions = [int(each.version) for each in client.search_model_versions(f"name = '{model.name}'")]
        found += [f"models:/{model.name}/{max(versions)}"] if versions else []
    return found
