"""Predictions of whole images by overlapping windows: MONAI's sliding_window_inference."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor


@torch.no_grad()
def sliding_window(
    image: Tensor,
    roi: Sequence[int],
    forward: Callable[[Tensor], Tensor],
    overlap: float = 0.5,
    batch: int = 4,
    mode: Literal["constant", "gaussian"] = "constant",
    device: torch.device | str | None = None,
) -> Tensor:
    """Returns the prediction [K, *S], float32, of an image [C, *S] by `forward(windows [B, C, *roi]) -> [B, K, *roi]`.

    Windows overlap by the share `overlap` and are averaged, evenly or weighted towards their centre (`gaussian`). An
    image smaller than `roi` is padded with zeros and the prediction cropped back. Windows lie on the image's device.
    `device` is where the windows are merged (None: the image's device): use the CPU if K × S is too large for it.
    The defaults are SelfMedMAE's.
    """
    from monai.inferers.utils import sliding_window_inference

    def predict(windows: Tensor) -> Tensor:
        # MONAI multiplies the logits in place and sums them: they must be a copy, on the image's device, in float32
        return forward(windows).to(image.device, torch.float32, copy=True)

    stitched = sliding_window_inference(
        image[None].float(), tuple(roi), batch, predict, overlap=overlap, mode=mode, device=device or image.device
    )
    assert isinstance(stitched, Tensor)
    return stitched[0]
