"""The settings that tasks on folders of labelled volumes share: preprocessing, sliding windows, parts."""

from typing import Literal, Self

from pydantic import PositiveFloat, PositiveInt, model_validator

from premed.config.image_processing import Preprocessing
from premed.config.spec import Spec, added_field, runtime_field, scoring_field
from premed.data import splits
from premed.tasks.common.patients import PatientRule


class VolumeSettings(Spec):
    """`roi` in voxels, `spacing` in mm."""

    roi: tuple[PositiveInt, PositiveInt, PositiveInt] = (96, 96, 96)
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """None keeps each image's spacing."""
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = (0.5, 99.5)
    normalise: Literal["window", "zscore", "zscore_nonzero"] = "zscore"
    crop_foreground: bool = False
    overlap: float = scoring_field(0.5, ge=0, lt=1)
    window_batch: int = runtime_field(4, ge=1)
    patient: PatientRule | None = added_field(None)
    """A field of each entry of dataset.json, or a pattern over case names whose first group is the patient, as in
    '(.+)_[0-9]+'; None: each image is a patient. All images of a patient go to one part."""
    split_seed: int = 0
    shares: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.6, 0.15, 0.25)
    """Shares of the patients with labelled cases: train, val, test."""
    split: splits.Split | None = None
    """Case names (hippocampus_001, …) per part, in place of the random split."""
    partial: bool = runtime_field(False)
    """Listed cases that are not on disk are left out of their part rather than refused."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares: {list(self.shares)} do not add up to 1")
        if self.window and self.percentiles:
            raise ValueError("window and percentiles exclude each other; set percentiles: null")
        self.preprocessing(1)
        return self

    def preprocessing(self, channels: int) -> Preprocessing:
        """Returns the preprocessing with these settings."""
        return Preprocessing(
            dims=3,
            channels=channels,
            spacing=self.spacing,
            window=self.window,
            percentiles=self.percentiles,
            normalise=self.normalise,
            crop_foreground=self.crop_foreground,
        )
