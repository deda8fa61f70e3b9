"""The settings that data sets of pictures or of volumes share: what the network sees, and how images are prepared."""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from premed.config.image_processing import Preprocessing
from premed.config.spec import Spec


class ImageSettings(Spec):
    """`roi` in pixels or voxels, `spacing` in mm."""

    dims: Literal[2, 3] = 2
    channels: PositiveInt = 1
    """3 for RGB."""
    roi: tuple[PositiveInt, ...] = (224, 224)
    """The network's input: height and width, or three axes."""
    stored: tuple[PositiveInt, PositiveInt] | None = None
    """2D: pictures are resized to this size, from which the roi is cropped; None: the roi's size."""
    equalize: bool = False
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """3D: None keeps each image's spacing."""
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    crop_foreground: bool = False
    normalise: Literal["grey", "window", "zscore", "zscore_nonzero"] | None = None
    """None: grey for pictures (8 bit; DICOM with its display window), zscore for volumes."""

    @model_validator(mode="after")
    def _fits_images(self) -> Self:
        if len(self.roi) != self.dims:
            raise ValueError(f"roi: {list(self.roi)} must have {self.dims} numbers")
        if self.stored and any(n < size for n, size in zip(self.stored, self.roi, strict=False)):
            raise ValueError(f"stored: {list(self.stored)} is smaller than roi {list(self.roi)}")
        if self.stored and self.dims == 3:
            raise ValueError("stored is for dims: 2")
        self.preprocessing()
        return self

    def preprocessing(self) -> Preprocessing:
        """Returns the preprocessing with these settings."""
        return Preprocessing(
            dims=self.dims,
            channels=self.channels,
            size=(self.stored or self.roi) if self.dims == 2 else None,  # type: ignore[arg-type]
            equalize=self.equalize,
            spacing=self.spacing,
            window=self.window,
            percentiles=self.percentiles,
            crop_foreground=self.crop_foreground,
            normalise=self.normalise or ("grey" if self.dims == 2 else "zscore"),
        )
