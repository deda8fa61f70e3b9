"""The settings of preprocessing (once per image, deterministic) and of augmentation (per view, random)."""

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from premed.config.spec import Spec, added_field


class Augmentation(Spec):
    """Random augmentation of the views. Probabilities are per axis and view."""

    crops: int = Field(default=1, ge=1)
    """Views of one image in one step (MONAI: num_samples); batch size and learning rate count images."""
    flip: float = Field(default=0.0, ge=0, le=1)
    flip_axes: tuple[int, ...] | None = None
    """The spatial axes that may flip; None: all axes of a volume, left-right for a picture."""
    rotate: float = Field(default=0.0, ge=0, le=1)
    """3D: probability of a rotation by 90, 180 or 270°."""
    rotate_plane: tuple[int, int] | None = added_field(None)
    """3D: the two axes of that rotation; None: a random plane in which the roi's edges are equal."""
    intensity: float = Field(default=0.0, ge=0, le=1)
    """3D: probability of scaling, and of shifting, the values by up to 10 %."""
    shift: int | None = Field(default=None, ge=0)
    """3D: the largest distance of a crop from the image's centre, in voxels; None: anywhere."""
    positive: float | None = Field(default=None, ge=0, le=1)
    """3D, with labels: the share of crops centred on a labelled voxel; None: crops do not depend on labels."""
    scale: tuple[float, float] | None = None
    """2D: range of the area of a random resized crop, as shares; None: the whole picture."""
    rand: str | None = Field(default=None, pattern=r"^rand(-[a-z]+[0-9.]*)*$")
    """2D: timm's RandAugment policy, such as rand-m9-mstd0.5-inc1."""

    def inapplicable_fields(self, dims: int) -> list[str]:
        """Returns the fields that are set and have no effect on images with `dims` dimensions."""
        others = ("scale", "rand") if dims == 3 else ("rotate", "rotate_plane", "intensity", "shift", "positive")
        return [name for name in others if getattr(self, name) != type(self).model_fields[name].default]

    @field_validator("rotate_plane")
    @classmethod
    def _plane(cls, plane: tuple[int, int] | None) -> tuple[int, int] | None:
        if plane is not None and (plane[0] == plane[1] or not {*plane} < {0, 1, 2}):
            raise ValueError(f"{list(plane)} is no plane: give two of the axes 0, 1 and 2")
        return plane

    @field_validator("scale")
    @classmethod
    def _share(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"{list(scale)} are not shares of the area: give [low, high] with 0 < low <= high <= 1")
        return scale


class Preprocessing(Spec):
    """Deterministic preprocessing of an image, done once, before any random view."""

    dims: Literal[2, 3]
    channels: PositiveInt = 1
    size: tuple[PositiveInt, PositiveInt] | None = None
    """2D: resize to (H, W), antialiased; None keeps the file's size."""
    equalize: bool = False
    """2D: histogram equalisation of 8-bit images, before resizing."""
    orientation: str = Field(default="RAS", pattern="^[RLAPSI]{3}$")
    """3D: the direction in which each axis increases; axes are flipped and permuted to the closest, never rotated."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """3D: resample to this voxel size in mm, at right angles; linear for the image, nearest for the label; None keeps
    the file's grid."""
    crop_foreground: bool = False
    """3D: crop to the bounding box of the voxels above the window's low end (above 0 without a window); labels have no
    influence."""
    window: tuple[float, float] | None = None
    """Clip to these values."""
    percentiles: tuple[float, float] | None = None
    """Clip each channel to these percentiles of its values (of its non-zero voxels, for `zscore_nonzero`). What DICOM
    declares to be padding counts neither here nor in any other statistic."""
    normalise: Literal["window", "zscore", "zscore_nonzero", "grey"]
    """`window`: the window to [0, 1]; `zscore`: per channel; `zscore_nonzero`: per channel, with the statistics of its
    non-zero voxels, which alone change; `grey`: 8 bit to [0, 1], then (x - mean) / std."""
    mean: float = 0.5  # `grey`: SelfMedMAE's for chest X-rays
    std: PositiveFloat = 0.225

    @model_validator(mode="after")
    def _fits_together(self):
        three = self.spacing is not None or self.crop_foreground or self.orientation != "RAS"
        if self.dims == 2 and three:
            raise ValueError("spacing, crop_foreground and orientation are for dims: 3")
        if self.dims == 3 and (self.size or self.equalize or self.normalise == "grey"):
            raise ValueError("size, equalize and normalise: grey are for dims: 2")
        if any(len({*pair} & {*self.orientation}) != 1 for pair in ("RL", "AP", "SI")):
            raise ValueError(f"orientation: {self.orientation!r} must have one letter each of R/L, A/P and S/I")
        if self.normalise == "window" and self.window is None:
            raise ValueError("normalise: window needs window: [low, high]")
        if self.window and self.percentiles or (self.normalise == "grey" and (self.window or self.percentiles)):
            raise ValueError("window and percentiles exclude each other, and normalise: grey takes neither")
        for name, pair in (("window", self.window), ("percentiles", self.percentiles)):
            if pair and not pair[0] < pair[1]:
                raise ValueError(f"{name}: the first must be below the second")
        if self.percentiles and not (self.percentiles[0] >= 0 and self.percentiles[1] <= 100):
            raise ValueError("percentiles: between 0 and 100")
        return self

    @property
    def as_displayed(self) -> bool:
        """True if DICOM pictures are read with their display window (8 bit) rather than in stored units."""
        return self.equalize or self.normalise == "grey"
