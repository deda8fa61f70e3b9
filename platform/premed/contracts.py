"""The interfaces between premed's parts. Read this module first.

A **Task** is a data set with a question: it lists cases, says how they are preprocessed, cuts training views and scores
predictions. An **Encoder** turns images into **Features**; a **Head** turns features into logits. An **Objective** is
what `fit()` minimises: a pre-training strategy such as MAE, or `supervised.Supervised` (encoder, head and the task's
loss) in fine-tuning. A training learns from one or more **DataSet**s: a **BatchSampler** chooses the samples of each
step, a **BatchLoader** reads them as **Batch**es.

Shapes: B batch, C channels, *S spatial axes (H, W or three axes in RAS order), L patches, K visible patches, D width.
"""

# pyright: reportReturnType=false
# (the Protocols' methods have a docstring for a body)

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from torch import Tensor, nn

from premed.config.image_processing import Augmentation, Preprocessing
from premed.errors import Finding
from premed.rng import SampleRng, drop_path
from premed.safety.files import refuse_undecodable

Part = Literal["train", "val", "test"]
Row = dict[str, Any]  # one line of a table of scores: `case`, `patient`, and numbers
Forward = Callable[[Tensor], Tensor]
"""Maps an image [B, C, *roi] to logits, both on the CPU, without gradient."""


# ---- Images
@dataclass(frozen=True)
class Case:
    """One image of a data set: its files, its patient and its label."""

    name: str  # unique within its task; error messages and tables of scores use it
    patient: str
    image: tuple[Path, ...]  # the file(s) that hold the channels; a folder is one volume of DICOM slices
    label: Path | tuple[float, ...] | None = None
    """The file of a label map, or one number per class (NaN: unknown). None: the case serves pre-training only."""

    def __post_init__(self):
        refuse_undecodable(self.name, self.patient, *self.files)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of the image and, if the label is a map, of the label."""
        return (*self.image, self.label) if isinstance(self.label, Path) else self.image


class PreparedImage(Protocol):
    """A case's preprocessed image and label map (`data.prepared.PreparedFile`), read crop by crop: `size` voxels from
    `start` on. Beyond the image, a crop is padded with background (stored 0). Without a crop, all of it is returned."""

    path: Path

    @property
    def shape(self) -> tuple[int, ...]: ...  # *S, on the preprocessed grid
    @property
    def has_label(self) -> bool: ...
    @property
    def affine(self) -> np.ndarray:
        """[4, 4], from voxel indices of the preprocessed grid to mm."""

    @property
    def native_affine(self) -> np.ndarray:
        """[4, 4], from voxel indices of the file's grid to mm."""

    @property
    def native_shape(self) -> tuple[int, ...]: ...
    @property
    def counts(self) -> dict[int, int]:
        """Voxels per label, in ascending order; 0 counts the unlabelled voxels whose stored value is not 0."""

    @property
    def labels_present(self) -> tuple[int, ...]: ...  # those that occur, without 0
    def image(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """The image, float32 [C, *size], in the units that networks take."""

    def stored(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """The image as it is stored, uint8 or int16 [C, *size]; `values` converts it to the units of `image`."""

    def values(self, stored: np.ndarray) -> np.ndarray: ...
    def label(self, start: Sequence[int] | None = None, size: Sequence[int] | None = None) -> np.ndarray:
        """The label map, uint8 [*size]. Raises ValueError if the image has none."""

    def locations(self, label: int) -> np.ndarray:
        """Up to 5,000 voxels [n, dims] of a label, spread evenly over it; 0: of the voxels that `counts` counts."""


class Sample(NamedTuple):
    """A case and its preprocessed image."""

    case: Case
    prepared: PreparedImage
    data_set: int = 0  # the index of its data set; the samples of a data set are contiguous
    label_hash: str | None = None  # of the file of its label map, as it was when the image was prepared


@dataclass
class Batch:
    """The samples of one rank in one step, or in one micro-batch of a step."""

    image: Tensor  # [B, C, *S] float32
    keys: Tensor  # [B] int64: the samples' random keys; masks and drop path derive from them
    names: tuple[str, ...]  # the cases' names
    label: Tensor | None = None  # [B, classes] or [B, *S]
    weight: float = 1.0  # the batch's share of the step's samples × number of ranks, so that DDP's mean is correct
    data_set: Tensor | None = None  # [B] int64: the index of each sample's data set; None if there is only one


# ---- Networks
@dataclass
class Features:
    """An encoder's output for a batch of images."""

    tokens: Tensor  # [B, L, D] or [B, K, D], after the last norm, without the class token
    grid: tuple[int, ...]  # patches per axis; prod(grid) == L
    summary: Tensor | None = None  # [B, D]: the class token, if the encoder has one
    taps: dict[int, Tensor] = field(default_factory=dict)  # block -> its output [B, L, D]
    pyramid: tuple[Tensor, ...] = ()  # feature maps [B, C_i, *S_i], fine to coarse, as `Encoder.pyramid` lists them


class Scale(NamedTuple):
    """Channels and stride of one feature map of a pyramid."""

    channels: int
    stride: tuple[int, ...]  # image voxels per voxel of the map, for each axis


class Encoder(nn.Module):
    """Turns images into Features. Checkpoints refer to its parameters by name: a rename breaks them."""

    takes_keep: bool = False  # whether `forward` can look at some patches alone
    width: int
    depth: int
    grid: tuple[int, ...]
    patch: tuple[int, ...]
    pyramid: tuple[Scale, ...] = ()
    """The scales of `Features.pyramid`, fine to coarse. If it has any, blocks (and taps) differ in grid and width."""
    decoded: int = 0
    """Index in `pyramid` of the finest map of the encoder's own decoder: heads start there; finer maps are skips."""
    drop_path: float = 0.0  # rate of the deepest block; it grows linearly from 0. Fine-tuning sets it
    frozen: int = 0  # how many of the first blocks fine-tuning leaves as they are (`finetune.policy`)

    def forward(
        self, image: Tensor, *, keep: Tensor | None = None, taps: Sequence[int] = (), keys: Tensor | None = None
    ) -> Features:
        """Encodes `image` [B, C, *S]. keep [B, K]: indices of the visible patches (None: all). taps: the blocks whose
        output is returned, too. keys [B]: random keys of drop path (None: no drop path)."""
        raise NotImplementedError

    def layer(self, name: str) -> int:
        """The depth of a parameter, for layer-wise learning rate decay: 0 for embeddings, i + 1 for block i."""
        raise NotImplementedError

    def fit_state(self, state: dict[str, Tensor], grid: tuple[int, ...]) -> tuple[dict[str, Tensor], list[str]]:
        """Weights made on another `grid`, with positions resized and unused ones dropped; names of the resized."""
        return state, []

    def drop_scales(self, keys: Tensor | None) -> Sequence[Tensor | None] | Tensor:
        """Factors of each block's two residual branches, [depth][2, B, 1, 1]; None per block if nothing is dropped."""
        if not self.training or self.drop_path == 0 or keys is None:
            return [None] * self.depth
        scales = drop_path(keys, self.drop_path, self.depth)
        scales[: self.frozen] = 1  # a frozen block computes as in prediction
        return scales

    def timm(self) -> dict[str, Any] | None:
        """Arguments with which `timm.create_model` builds a model of the same parameters; None if timm has none."""
        return None


class Solution(NamedTuple):
    """One closed-form solution of a head's weights, which the head now holds."""

    loss: float  # mean over the rows of the regression
    metrics: dict[str, float]  # what distinguishes it from the other solutions, such as the regularisation strength
    warnings: list[str]  # for the user


class Head(nn.Module):
    """Turns Features into logits: [B, classes] or [B, classes, *S]."""

    taps: tuple[int, ...] = ()  # the blocks whose output it needs
    loads: tuple[str, ...] = ()  # the saved parts, besides the encoder, from which its weights are initialised
    num_solutions: int = 0
    """If not 0, it is fitted in closed form on a frozen encoder (`rows`, `solve`): val selects one of so many."""

    def forward(self, image: Tensor, features: Features) -> Tensor:
        raise NotImplementedError

    def answers(self, image: Tensor, features: Features) -> tuple[tuple[float, Tensor], ...]:
        """What the loss is computed on: weights and logits, finest first. Coarser ones: deep supervision."""
        return ((1.0, self(image, features)),)

    def rows(self, features: Features) -> Tensor:
        """The inputs of the linear model, [B, N, D]: one row per image, or one per patch."""
        raise NotImplementedError

    def solve(self, rows: Tensor, shares: Tensor) -> Iterator[Solution]:
        """Sets the weights to each candidate solution in turn and describes it. On the CPU: `rows` [n, D] and
        `shares`, the class fractions of each row [n, classes] (NaN: unknown)."""
        raise NotImplementedError


# ---- Data sets
class Task(Protocol):
    """A data set with a question. Its Config sets paths and numbers; building a Task reads no image."""

    name: str
    root: Path  # the folder of its files; the configuration with this `root` builds the same task
    dims: int
    channels: int
    roi: tuple[int, ...]  # the network's input size, in voxels of the preprocessed grid
    classes: tuple[str, ...]  # one logit each
    exclusive: bool  # True: softmax over the classes; False: one sigmoid each
    labels: tuple[int, ...]  # the values that its label maps may hold; () if labels are not maps
    ignore: int | None  # of these, the value of voxels that count in neither loss nor scores
    regions: Mapping[str, tuple[int, ...]]  # scored regions of the label maps: name to the label values it unites
    score: str  # the metric of `summary` by which val selects the checkpoint: higher is better
    preprocessing: Preprocessing  # deterministic; the cache applies it once
    num_folds: int | None  # of a cross-validation that its test part is one fold of; None: it is none
    lenient: bool  # True: `split` leaves out faulty cases in place of raising (`premed data check`)

    def images(self) -> list[Case]:
        """The cases that pre-training may use: the training part and unlabelled images, without labels."""

    def split(self, part: Part) -> list[Case]: ...
    def check(self, test: bool = True) -> Iterator[Finding]:
        """Yields all faults of its listings without opening an image: missing files, patients in two parts, …
        Without `test`, it ignores the test part, the part's listing included."""

    def view(self, sample: Sample, augment: Augmentation, draw: SampleRng) -> tuple[np.ndarray, np.ndarray | None]:
        """One random view for training: image [C, *roi] float32, and its label (None if the case has none)."""

    def tiles(self, sample: Sample) -> list[np.ndarray]:
        """Fixed views [C, *roi] for validating a pre-training: no random crop, no augmentation."""

    def label_fractions(self, sample: Sample, patch: Sequence[int]) -> list[np.ndarray]:
        """The truth for each of `tiles`: its label [classes], or class fractions per patch [classes, *grid]."""

    def loss(self, logits: Tensor, label: Tensor) -> Tensor: ...  # the mean over the batch's samples
    def measure(self, forward: Forward, samples: Sequence[Sample]) -> list[Row]:
        """Scores of each case, in the samples' order."""

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The reported metrics, from the rows of all cases; undefined ones are left out."""

    def resampled(self, rows: Sequence[Row], counts: np.ndarray) -> np.ndarray: ...  # see `tasks/common/resamples.py`
    def constant_baseline(self, train: Sequence[Sample], samples: Sequence[Sample]) -> list[Row]:
        """The rows of `samples` for the best constant prediction, which is fitted to `train`."""

    def pictures(self, forward: Forward, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Writes PNG files of images, truth and predictions, and returns their paths."""

    def describe(self) -> dict[str, Any]:
        """The facts from which inference rebuilds an equivalent task without the data; stored with the network."""


class DataSet(NamedTuple):
    """One of the data sets that a training learns from."""

    task: Task
    group: str  # a name that it shares with similar data sets (X-ray, MRI)
    augment: Augmentation = Augmentation()  # the augmentation of its views


# ---- Batches
class BatchIndices(NamedTuple):
    """The samples of one batch or micro-batch, whose views have one shape. A pure function of the step."""

    epoch: int | np.ndarray  # the epoch of their data set: one for all, or one for each sample [n]
    samples: np.ndarray  # [n] indices into the samples of all data sets
    weight: float = 1.0  # see `Batch.weight`


class BatchSampler(Protocol):
    """Chooses the samples of each step, over all data sets together (`data/samplers.py`)."""

    @property
    def num_steps(self) -> int: ...

    def at(self, step: int) -> BatchIndices:
        """All samples of a step, over all ranks."""


class BatchLoader(Protocol):
    """Reads batches: worker processes on memory-mapped files, or volumes resident on the device. Same views."""

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """Yields one batch on the device for each of `indices`, in that order; may read ahead."""


# ---- Training
class Objective(nn.Module):
    """What `fit()` minimises; `forward` is the loss, so that DDP wraps it. Training nothing: `pretext/__init__.py`."""

    parts: dict[str, nn.Module]  # saved when training ends, by name: `encoder`, `decoder`, `head`
    weight_decay: float = 0.0
    num_solutions: int = 0
    """If not 0, a closed form replaces gradient descent (see `Head.num_solutions`)."""
    couples_batch: bool = False
    """True if the loss couples the samples of a step (contrastive losses): gradient accumulation would change it."""
    may_collapse: bool = False
    """True if it compares embeddings, which may come to be alike: val then has their RankMe and spread, too."""

    def forward(self, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss over the batch's samples, and further means to log. `progress`: 0 to 1 (see docs/trunk.md)."""
        raise NotImplementedError

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of unfrozen `params` with `lr_scale` and `weight_decay` (biases, norms: 0) or `decay` (first, last)"""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in trainable if p.ndim > 1], "weight_decay": self.weight_decay, "lr_scale": 1.0},
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0, "lr_scale": 1.0},
        ]

    def before_step(self, progress: float) -> dict[str, Tensor]:
        """Called between backward pass and optimizer step: clipping, freezing. Returns numbers to log."""
        return {}

    def after_step(self, progress: float) -> None:
        """Called after the optimizer step: EMA teachers."""

    def on_start(self, train: Sequence[Sample]) -> None:
        """Called once, before the first step of a new training: computes the gate's baseline from training images."""

    def measure(self, samples: Sequence[Sample]) -> list[Row]:
        """Scores of each validation case, in their order, without gradient."""
        raise NotImplementedError

    def summary(self, rows: Sequence[Row]) -> dict[str, float]: ...
    def pictures(self, samples: Sequence[Sample], folder: Path) -> list[Path]:
        """Writes PNG files that show what the network has learnt, and returns their paths."""
        return []

    def snapshot(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The current outputs for the first validation cases, kept for `progress_pictures`. Often empty."""
        return {}

    def progress_pictures(
        self, samples: Sequence[Sample], snapshots: Mapping[int, dict[str, Tensor]], folder: Path
    ) -> list[Path]:
        """Writes PNG files that show the training's progress, and returns their paths. snapshots: by steps done."""
        return []
