"""Golden losses: 20 steps of each kind of training, on images made of random numbers, give the losses they always gave.

A refactoring leaves them as they are. Where a change is meant to move them, raise `version` in the plug-in's Config (a
finished stage of the old version is then no longer reused) and write them anew:

    python tests/training/test_golden.py --write
"""

import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))  # `support`, where this runs as a script

from support.suite import REPOSITORY, locked

from premed.config.image_processing import Augmentation
from premed.contracts import Case, DataSet, Objective, Sample
from premed.data.loader import PreparedLoader
from premed.data.prepared import PreparedFile, write
from premed.data.preprocess import Prepared
from premed.data.resident import ResidentLoader
from premed.data.samplers import AlternatingSampler, EpochSampler
from premed.models.encoders import mit, resenc, swin, timm, unet, vit
from premed.models.heads import conv, linear, patch_decoder, unetr
from premed.models.heads import unet as unet_decoder
from premed.models.network import Network
from premed.pretext import hssl, mae, unimiss
from premed.rng import SampleRng, key
from premed.tasks.common.classification import Classification
from premed.tasks.common.segmentation import Segmentation
from premed.training.compiling import compiling
from premed.training.fit import fit
from premed.training.optimizer import make_optimizer
from premed.training.schedule import Schedule
from premed.training.supervised import Supervised

GOLDEN = REPOSITORY / "tests" / "golden"
NUM_STEPS, BATCH, NUM_IMAGES = 20, 6, 15  # the last batch of an epoch is smaller
WRITE = "raise `version` in the Config of what was changed, then run: python tests/training/test_golden.py --write"

# Processors differ in a float's last bit, and training amplifies that from step to step, the more the higher its rate.
# The rates below were chosen so that losses with AVX2, with SSE (ONEDNN_MAX_CPU_ISA, ATEN_CPU_CAPABILITY) and with
# two threads are within 7e-5 of these.
TOLERANCE = 1e-4


class Pictures(Classification):
    dims, channels, roi, classes = 2, 1, (32, 32), ("a", "b", "c")


class Volumes(Segmentation):
    dims, channels, roi, classes = 3, 2, (16, 16, 16), ("background", "a", "b")


class Slabs(Volumes):
    roi = (32, 16, 16)


class Blocks(Volumes):
    roi = (64, 32, 32)


class Scans(Volumes):
    channels, roi = 1, (32, 32, 16)


def sample(task: Pictures | Volumes, i: int, folder: Path) -> Sample:
    """An image of noise with a bright block in it; what it is labelled with follows from the block."""
    draw = SampleRng(key("golden", task.dims, i))
    shape = tuple(n + 4 for n in task.roi)
    image = draw.uniform("noise", task.channels * int(np.prod(shape)), 0, 120).reshape(task.channels, *shape)
    start = [draw.integer(f"start{axis}", n - 9) for axis, n in enumerate(shape)]
    block = tuple(slice(a, a + 9) for a in start)
    kind = draw.integer("kind", 2)
    image[(slice(None), *block)] += 60 + 60 * kind
    voxels = np.zeros(shape, np.uint8)
    voxels[block] = 1 + kind
    numbers = (float(kind), float(start[0] > start[1]), float("nan") if i % 4 == 0 else float(start[0] > 12))
    scale, offset = np.full(task.channels, 1 / 60, np.float32), np.full(task.channels, -1, np.float32)
    label = voxels if isinstance(task, Volumes) else None
    write(folder / f"{i}", Prepared(image.astype(np.uint8), scale, offset, label, np.eye(4), np.eye(4), shape))
    known = numbers if label is None else folder / f"{i}"
    return Sample(Case(f"case{i}", f"patient{i}", (), known), PreparedFile(folder / f"{i}"))


# What is trained ------------------------------------------------------------------------------------------------------


VIT = vit.Config(width=48, depth=3, heads=3, patch=8)
PRIMUS = vit.Config.model_validate({"size": "primus-s", "width": 48, "depth": 3, "heads": 4})
PRIMUS_V2 = PRIMUS.model_copy(update={"stem": "residual", "stem_width": 8})
MIT = mit.Config.model_validate({"size": "tiny", "stem_stride": (1, 1, 1), "stem_width": 16})
NARROW = {"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 8}
DINOV3 = timm.Config(model="dinov3-s", args={**NARROW, "init_values": 1.0, "global_pool": "avg"})
EVA_X = timm.Config(model="eva-x-s", args=NARROW)
RESENC = resenc.Config(widths=(8, 16, 24), blocks=(1, 2, 1))
GROUPED = RESENC.model_copy(update={"norm": "group"})
FOUR_STAGES = resenc.Config(widths=(8, 16, 24, 24), blocks=(1, 1, 1, 1), norm="group")
SWIN = swin.Config(width=6, depths=(2, 1, 1, 1), heads=(1, 2, 4, 8), window=3)
CONFIGS = {vit: VIT, mit: MIT, timm: DINOV3, resenc: RESENC, swin: SWIN}
THIN = MIT.model_copy(update={"widths": (16, 32, 32, 64)})


def pretraining(data_sets: list[DataSet], encoders=vit, network=VIT) -> Objective:
    encoder = encoders.build(network, data_sets[0].task.channels, data_sets[0].task.roi)
    config = mae.Config(mask_ratio=0.6, decoder_width=24, decoder_depth=2, decoder_heads=2)
    return mae.build(config, encoder, data_sets, weight_decay=0.05)


def contrasting(data_sets: list[DataSet], group_loss: Any) -> Objective:
    encoder = unet.build(unet.Config(widths=(8, 16, 24)), data_sets[0].task.channels, data_sets[0].task.roi)
    config = hssl.Config(dim=16, hidden_width=32, block=4, group_loss=group_loss)
    return hssl.build(config, encoder, data_sets, weight_decay=0.05)


def distilling(data_sets: list[DataSet]) -> Objective:
    inputs = [(data_set.task.channels, data_set.task.roi) for data_set in data_sets]
    encoder = mit.build(THIN, *inputs[0], *inputs[1:])
    config = unimiss.Config(hidden=64, bottleneck=16, prototypes=32, resting=0.1, momentum=0.99)
    return unimiss.build(config, encoder, data_sets, weight_decay=0.04)


def finetuning(data_sets: list[DataSet], head, encoders=vit, network=None) -> Objective:
    task = data_sets[0].task
    encoder = encoders.build(network or CONFIGS[encoders], task.channels, task.roi)
    config = head.Config(**({"feature_size": 4} if head is unetr else {}))
    network = Network(encoder, head.build(config, encoder, task))
    return Supervised(network, task, weight_decay=0.05, layer_decay=0.75, drop_path=0.1)  # type: ignore[arg-type]


class Kind(NamedTuple):
    tasks: type[Pictures] | type[Volumes] | tuple[type[Pictures] | type[Volumes], ...]
    objective: Callable[[list[DataSet]], Objective]
    augment: Augmentation
    parts: tuple[ModuleType, ...]
    lr: float = 2e-3
    interval: int = 0  # of data sets in turn: so many steps of each
    accumulate: int = 2


KINDS = {
    "mae-2d": Kind(Pictures, pretraining, Augmentation(flip=0.5), (mae, vit)),
    "mae-timm": Kind(
        Pictures, partial(pretraining, encoders=timm, network=EVA_X), Augmentation(flip=0.5), (mae, timm), 5e-4
    ),
    "timm": Kind(Pictures, partial(finetuning, head=linear, encoders=timm), Augmentation(flip=0.5), (linear, timm)),
    "mae-3d": Kind(Volumes, pretraining, Augmentation(flip=0.2), (mae, vit)),
    "linear": Kind(Pictures, partial(finetuning, head=linear), Augmentation(flip=0.5), (linear, vit)),
    "unetr": Kind(
        Volumes, partial(finetuning, head=unetr), Augmentation(flip=0.2, rotate=0.2, crops=2), (unetr, vit), 2e-4
    ),
    "mae-primus": Kind(Volumes, partial(pretraining, network=PRIMUS), Augmentation(flip=0.2), (mae, vit)),
    "mae-primus-v2": Kind(Volumes, partial(pretraining, network=PRIMUS_V2), Augmentation(flip=0.2), (mae, vit), 5e-4),
    "primus": Kind(
        Volumes,
        partial(finetuning, head=patch_decoder, network=PRIMUS),
        Augmentation(flip=0.2),
        (patch_decoder, vit),
    ),
    "mit-2d": Kind(
        Pictures, partial(finetuning, head=linear, encoders=mit), Augmentation(flip=0.5), (linear, mit), 5e-4
    ),
    "unimiss": Kind((Pictures, Scans), distilling, Augmentation(flip=0.5, crops=2), (unimiss, mit), 2e-4, interval=2),
    "mit-3d": Kind(Slabs, partial(finetuning, head=conv, encoders=mit), Augmentation(flip=0.2), (conv, mit), 2e-4),
    "mae-resenc-2d": Kind(
        Pictures,
        partial(pretraining, encoders=resenc, network=FOUR_STAGES),
        Augmentation(flip=0.5),
        (mae, resenc),
        2e-2,
    ),
    "mae-resenc-3d": Kind(
        Volumes, partial(pretraining, encoders=resenc, network=RESENC), Augmentation(flip=0.2), (mae, resenc), 2e-2
    ),
    "resenc-2d": Kind(
        Pictures,
        partial(finetuning, head=linear, encoders=resenc, network=GROUPED),
        Augmentation(flip=0.5),
        (linear, resenc),
        2e-2,
    ),
    "resenc-3d": Kind(
        Volumes,
        partial(finetuning, head=unet_decoder, encoders=resenc),
        Augmentation(flip=0.2),
        (unet_decoder, resenc),
    ),
    "swin": Kind(Blocks, partial(finetuning, head=conv, encoders=swin), Augmentation(flip=0.2), (conv, swin), 1e-3),
    "hssl-2d": Kind(
        (Pictures,) * 3,
        partial(contrasting, group_loss="classes"),
        Augmentation(flip=0.5),
        (hssl, unet),
        5e-4,
        accumulate=1,
    ),
    "hssl-3d": Kind(
        (Volumes,) * 3,
        partial(contrasting, group_loss="contrast"),
        Augmentation(flip=0.2),
        (hssl, unet),
        2e-4,
        accumulate=1,
    ),
}


LONG = {"swin", "mit-3d", "hssl-3d", "unimiss", "mae-resenc-3d", "resenc-2d", "resenc-3d"}


def losses(
    kind: str, folder: Path, loader: type[PreparedLoader] = PreparedLoader, compiled: bool = False
) -> list[float]:
    """The loss of each step. compiled: in whole batches, whose two sizes are compiled."""
    of = KINDS[kind]._replace(accumulate=1) if compiled else KINDS[kind]
    tasks: list[Any] = [task() for task in (of.tasks if isinstance(of.tasks, tuple) else (of.tasks,))]
    data_sets = [DataSet(task, "ab"[number % 2], of.augment) for number, task in enumerate(tasks)]
    if of.interval:  # an epoch is a step
        plan = AlternatingSampler((BATCH,) * len(tasks), BATCH, NUM_STEPS, 0, kind, of.interval)
        samples = [
            sample(task, i, folder / f"{n}")._replace(data_set=n) for n, task in enumerate(tasks) for i in range(BATCH)
        ]
    else:
        plan = EpochSampler(NUM_IMAGES, BATCH, NUM_STEPS, seed=0, stage=kind)
        samples = [
            sample(tasks[0], i, folder)._replace(data_set=i * len(tasks) // NUM_IMAGES) for i in range(NUM_IMAGES)
        ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key("golden", kind))
        objective = of.objective(data_sets)
    seen: list[float] = []
    source = loader(data_sets, samples, seed=0, stage=kind, device=torch.device("cpu"))
    schedule, optimizer = Schedule(NUM_STEPS, warmup_steps=4, lr=of.lr), make_optimizer(objective, (0.9, 0.95))

    def keep(step: int, loss: torch.Tensor, numbers: Any) -> None:
        seen.append(loss.item())

    with compiling(objective, compiled) as plainly:
        fit(objective, source, plan, schedule, optimizer, plainly(keep), accumulate=of.accumulate)
    return seen


# What they are compared with ------------------------------------------------------------------------------------------


def heading(kind: str) -> str:
    versions = [f"{part.Config.model_fields['name'].default} {part.Config.version}" for part in KINDS[kind].parts]
    return f"# loss of steps 1 to {NUM_STEPS}; version of {', '.join(versions)}"


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in LONG)) for kind in KINDS])
def test_twenty_steps_give_the_golden_losses(kind, tmp_path):
    if torch.__version__.partition("+")[0] != (ours := locked("torch")):
        pytest.skip(f"golden losses are those of torch {ours}: another rounds otherwise, which training amplifies")
    now, then = losses(kind, tmp_path), np.loadtxt(GOLDEN / f"{kind}.txt")
    message = f"the losses of {kind} have changed. If that is meant, {WRITE}"
    np.testing.assert_array_less(np.abs(now / then - 1), TOLERANCE, err_msg=message)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler (g++)")
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["mae-2d", "mae-3d", "resenc-2d"])
def test_compiled_blocks_give_the_same_losses_but_for_rounding(kind, tmp_path, shared, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(shared("compiled", lambda folder: None)))
    compiled, plain = losses(kind, tmp_path, compiled=True), losses(kind, tmp_path)
    np.testing.assert_array_less(np.abs(np.array(compiled) / plain - 1), TOLERANCE)


@pytest.mark.parametrize("kind", ["linear", "mae-3d", pytest.param("unetr", marks=pytest.mark.slow)])
def test_images_that_stay_on_the_device_give_the_same_losses(kind, tmp_path):
    now, from_files = losses(kind, tmp_path, ResidentLoader), losses(kind, tmp_path)
    assert now == from_files


@pytest.mark.parametrize("kind", KINDS)
def test_golden_losses_are_those_of_the_plugins_versions(kind):
    assert (GOLDEN / f"{kind}.txt").read_text().splitlines()[0] == heading(kind), f"write them anew: {WRITE}"


@pytest.mark.parametrize("kind", KINDS)
def test_golden_losses_fall(kind):
    then = np.loadtxt(GOLDEN / f"{kind}.txt")
    # in turn: as many steps of each data set, and from when a teacher's centre is no longer where it began
    first, some = (2, 8) if KINDS[kind].interval else (0, 5)
    assert len(then) == NUM_STEPS and then[-some:].mean() < 0.99 * then[first : first + some].mean()


def rewrite(kind: str) -> str:
    """Writes one file; refuses to where the numbers changed and the versions did not."""
    path = GOLDEN / f"{kind}.txt"
    with TemporaryDirectory() as folder:
        now = losses(kind, Path(folder))
    if path.exists() and path.read_text().splitlines()[0] == heading(kind):
        if (np.abs(now / np.loadtxt(path) - 1) < TOLERANCE).all():
            return f"{kind}: unchanged"
        return f"{kind}: NOT written, for the losses changed under the same versions; {WRITE}"
    path.write_text("\n".join([heading(kind), *(f"{loss:.7f}" for loss in now)]) + "\n")
    return f"{kind}: written with torch {torch.__version__}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/training/test_golden.py --write")
    torch.set_num_threads(1)
    print("\n".join(map(rewrite, KINDS)))
