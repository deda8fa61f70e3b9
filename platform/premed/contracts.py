"""The page to read first: what the parts of premed say to each other.

A **Task** is a data set with a question: it names cases, prepares them, cuts views out of them and measures answers. An
**Encoder** turns images into Features. An **Objective** is what `fit()` minimises: MAE and its kin in pre-training,
`supervised.Supervised` (encoder + **Head** + the task's loss) in fine-tuning. A **Domain** is one of the data sets
that it learns from, a **Source** yields Batches of them, a **Plan** says which samples make up each step.

Shapes: B batch, C channels, *S spatial axes (H, W or three axes in RAS order), L patches, K visible patches, D width.
"""

# pyright: reportReturnType=false
# (the Protocols' methods have a docstring for a body)

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as default
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from premed.config.transforms import Augmentation, Preprocessing
from premed.errors import Finding
from premed.rng import SampleRng, drop_path

Part = Literal["train", "val", "test"]
Row = dict[str, Any]
"""One line of a table of scores: `case`, `patient`, and numbers."""
Forward = Callable[[Tensor], Tensor]
"""Image [B, C, *roi] to logits, both on the CPU, without gradient."""


@dataclass(frozen=True)
class Case:
    """One image of a data set and what is known of it."""

    name: str
    """Unique in its task; what errors and score tables call it."""
    patient: str
    image: tuple[Path, ...]
    """The file(s) the channels are read from; a folder is one volume of DICOM slices."""
    label: Path | tuple[float, ...] | None = None
    """A label map, one number per class (NaN: not known), or nothing: then it serves pre-training only."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Of the image and, where it is a map, of the label."""
        return (*self.image, self.label) if isinstance(self.label, Path) else self.image


class PreparedImage(Protocol):
    """A case's preprocessed image (`data.prepared.PreparedFile`), of which a crop reads only itself.

    `start` may lie outside the image, and `start + size` too: what is outside is air, 0. None: all of it.
    """

    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        """*S, on the preprocessed grid."""

    @property
    def has_label(self) -> bool: ...
    @property
    def affine(self) -> np.ndarray:
        """[4, 4], voxel numbers to mm."""

    @property
    def native_affine(self) -> np.ndarray:
        """The same of the file's own grid."""

    @property
    def native_shape(self) -> tuple[int, ...]: ...
    @property
    def counts(self) -> dict[int, int]:
        """How many voxels each label has, ascending; 0 counts those that are not air."""

    @property
    def labels_present(self) -> tuple[int, ...]:
        """The labels that occur, without 0."""

    def image(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """Float32 [C, *size], as networks see it."""

    def stored(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """uint8 or int16 [C, *size]: smaller; `values` makes `image` of it."""

    def values(self, stored: np.ndarray) -> np.ndarray: ...
    def label(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """uint8 [*size]. Raises ValueError where there is none."""

    def locations(self, label: int) -> np.ndarray:
        """Up to 5,000 voxels [n, dims] of a label, spread evenly over it; 0: of what is neither labelled nor air."""


class Sample(NamedTuple):
    """A case together with its prepared copy."""

    case: Case
    prepared: PreparedImage
    data_set: int = 0  # the number of the data set it is from; samples of one data set follow each other


@dataclass
class Batch:
    """What one rank sees of one step (or of one micro-batch of it)."""

    image: Tensor  # [B, C, *S] float32
    keys: Tensor  # [B] int64: the samples' draw keys; masks and drop path come from them
    names: tuple[str, ...]  # the cases' names
    label: Tensor | None = None  # [B, classes] or [B, *S]
    weight: float = 1.0  # this batch's share of the step's samples × number of ranks: DDP then averages rightly
    data_set: Tensor | None = None  # [B] int64: the number of the data set each is from; None where there is but one


@dataclass
class Features:
    """What an encoder says of a batch of images."""

    tokens: Tensor  # [B, L, D] or [B, K, D], after the last norm, without the class token
    grid: tuple[int, ...]  # patches per axis; prod(grid) == L
    summary: Tensor | None = None  # [B, D]: the class token, where the encoder has one
    taps: dict[int, Tensor] = default(default_factory=dict)  # block -> [B, L, D], as the blocks left them
    pyramid: tuple[Tensor, ...] = ()  # feature maps [B, C_i, *S_i], fine to coarse, as `Encoder.pyramid` tells


class Scale(NamedTuple):
    """A feature map of a pyramid."""

    channels: int
    stride: tuple[int, ...]  # voxels of the image per voxel of the map, axis by axis


class Encoder(nn.Module):
    """Turns images into Features. Its parameter names are what a checkpoint's card speaks of."""

    width: int
    depth: int
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    pyramid: tuple[Scale, ...] = ()
    """What `Features.pyramid` holds, fine to coarse. Not (): blocks differ in grid and width, and so do their taps."""
    decoded: int = 0
    """The pyramid's finest map that the encoder's own decoder made: heads go on from it, with finer ones as skips."""
    drop_path: float = 0.0
    """The deepest block's rate of dropped branches; it grows linearly from 0. Fine-tuning sets it."""

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        """`keep` [B, K]: the patches to look at (all, if None). `keys` [B]: draws of drop path (none, if None)."""
        raise NotImplementedError

    def layer(self, name: str) -> int:
        """The layer a parameter belongs to: 0 embeds, i + 1 is block i; layer decay counts by it."""
        raise NotImplementedError

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights made on another `grid`, resized to this one's, less what it has no use for; and the names resized."""
        return state, []

    def drop_scales(self, keys: Tensor | None) -> Sequence[Tensor | None] | Tensor:
        """Per block, what its two branches are multiplied by, [depth][2, B, 1, 1]: in training with `keys` alone."""
        drops = self.training and self.drop_path > 0
        return drop_path(keys, self.drop_path, self.depth) if drops and keys is not None else [None] * self.depth

    def timm(self) -> dict[str, Any] | None:
        """The arguments of `timm.create_model` that make a model with the same parameters; None: timm has none."""
        return None


class Solution(NamedTuple):
    """One solution of a head's weights; the head has them."""

    loss: float  # mean over the rows that the weights were solved on
    metrics: dict[str, float]  # what distinguishes it from the other solutions, such as the regularisation
    warnings: list[str]  # for the user


class Head(nn.Module):
    """Turns Features into logits: [B, classes] or [B, classes, *S]."""

    taps: tuple[int, ...] = ()
    """The blocks whose output it wants to see."""
    loads: tuple[str, ...] = ()
    """The saved parts, beside the encoder, that it starts from."""
    num_solutions: int = 0
    """Not 0: its weights are solved, not descended, in so many ways, of which val picks one; the encoder stays as is.
    `rows` and `solve` are for such heads alone."""

    def forward(self, image: Tensor, features: Features) -> Tensor:
        raise NotImplementedError

    def rows(self, features: Features) -> Tensor:
        """What its logits are linear in, [B, N, D]: one row per image, or one per patch."""
        raise NotImplementedError

    def solve(self, rows: Tensor, shares: Tensor) -> Iterator[Solution]:
        """Sets its weights to one solution after the other, and tells of it: from `rows` [n, D] and the shares of the
        classes in them [n, classes], NaN where not known; both on the CPU."""
        raise NotImplementedError


class Task(Protocol):
    """A data set with a question. Paths and numbers come from its Config; nothing is read before it is asked for."""

    name: str
    root: Path  # where its files lie: the configuration with this `root` makes the same task
    dims: int
    channels: int
    roi: tuple[int, ...]  # what the network sees at once, in voxels of the prepared grid
    classes: tuple[str, ...]  # what the head answers, one logit each
    exclusive: bool  # softmax over the classes; else a sigmoid each
    labels: tuple[int, ...]  # the values its label maps may hold; () where labels are not maps
    regions: Mapping[str, tuple[int, ...]]  # what of these maps is scored: name to the values it unites
    score: str  # the number, among `summary`'s, that picks the checkpoint on val: higher is better
    preprocessing: Preprocessing  # the deterministic preprocessing, done once by the cache
    lenient: bool  # set to have `split` leave out what it would refuse: `premed data check` then opens all the rest

    def images(self) -> list[Case]:
        """What pre-training may see: the training part and the unlabelled, stripped of labels."""

    def split(self, part: Part) -> list[Case]: ...

    def check(self, test: bool = True) -> Iterator[Finding]:
        """What its listings give away, all of it, without opening an image: missing files, patients in two parts, …

        test: false leaves the test part alone, its list too.
        """

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        """One view for training: image [C, *roi] float32, and its label (None where the case has none)."""

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        """The fixed views [C, *roi] on which a pre-training is validated: no draw, no augmentation."""

    def label_fractions(self, sample: Sample, patch: Sequence[int]) -> list[np.ndarray]:
        """The truth on each of `tiles`: its label [classes], or class fractions per patch [classes, *grid]."""

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """The mean over the batch's samples."""

    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """One row per case, in the samples' order."""

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The numbers that are reported, from the rows of all cases; undefined ones are left out."""

    def constant_baseline(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """The rows that one constant answer, the best on `train`, would get on `samples`."""

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """PNG files of images, truth and answers."""

    def describe(self) -> dict[str, Any]:
        """What a network's card holds of the task, from which a task that answers alike is made without the data."""


class DataSet(NamedTuple):
    """One of the data sets that a training learns from."""

    task: Task
    group: str  # what it has in common with others (X-ray, MRI)
    augment: Augmentation = Augmentation()  # how its views vary


class BatchLoader(Protocol):
    """Where batches come from: workers reading memory-mapped files, or volumes resident on the device. Same draws."""

    def batches(self, indices: "Iterable[BatchIndices]") -> Iterator[Batch]:
        """One batch on the device per entry of `picks`, in that order, read ahead where that pays."""


class BatchIndices(NamedTuple):
    """The samples of one (micro-)batch, whose views have one shape: a pure function of the step."""

    epoch: int | np.ndarray  # how often their data set was gone through before: of all, or of each sample [n]
    samples: np.ndarray  # [n] numbers in the source
    weight: float = 1.0


class BatchSampler(Protocol):
    """Which samples make up which step. Several data sets are one plan over all of their samples (`plans.py`)."""

    @property
    def num_steps(self) -> int: ...

    def at(self, step: int) -> BatchIndices:
        """The whole step's samples, over all ranks."""


class Objective(nn.Module):
    """What `fit()` minimises. The loss IS the forward, so that DDP sees it. A strategy that trains nothing may bring an
    encoder's weights instead: `pretext/__init__.py` has that contract."""

    parts: dict[str, nn.Module]
    """What is saved under which name when training ends: `encoder`, `decoder`, `head`."""
    weight_decay: float = 0.0
    num_solutions: int = 0
    """Not 0: a closed form stands in for the descent (`Head.num_solutions`)."""
    couples_batch: bool = False
    """True if the loss couples the samples of a step (contrastive losses): gradient accumulation would change it."""

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over the batch's samples, and such means to log. `progress`: 0 to 1 (see docs/trunk.md)."""
        raise NotImplementedError

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer: `params`, `weight_decay` or `decay` (first, last: `fit.set_decay`), and `lr_scale`
        (layer decay). What is frozen is left out. If nothing else is said, matrices decay; biases and norms do not."""
        learnt = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in learnt if p.ndim > 1], "weight_decay": self.weight_decay, "lr_scale": 1.0},
            {"params": [p for p in learnt if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": 1.0},
        ]

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """After the gradients are there: clipping, freezing. Returns numbers to log."""
        return {}

    def after_step(self, progress: float) -> None:
        """After the optimizer moved: EMA teachers."""

    def on_start(self, train: Sequence[Sample]) -> None:
        """Called once, before the first step of a new training: the gate is computed from the training images here."""

    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """One row per validation case, in their order, without gradient."""
        raise NotImplementedError

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        raise NotImplementedError

    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """PNG files that show what it has learnt, written into `folder`."""
        return []

    def snapshot(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What it makes of the first validation cases by now, kept for `progress_pictures`. Often nothing."""
        return {}

    def progress_pictures(
        self, samples: Sequence[Sample], snapshots: Mapping[int, dict[str, Tensor]], folder: Path
    ) -> list[Path]:
        """PNG files that show what it learnt from step to step. snapshots: by the number of steps done."""
        return []
