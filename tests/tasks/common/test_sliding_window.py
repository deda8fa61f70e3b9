"""sliding_window.py: MONAI's windows, and a network that has no context gives the same through them."""

from functools import partial

import pytest
import torch

from premed.tasks.common.sliding_window import sliding_window

pytestmark = pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own


@pytest.mark.parametrize("size, roi", [((20, 17, 9), (8, 8, 8)), ((5, 20, 8), (8, 8, 8)), ((30, 11), (16, 16))])
@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_a_voxelwise_network_gives_the_same_through_windows(size, roi, mode):
    image = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))

    def network(windows):
        return torch.cat([windows * 2, windows[:, :1] - 1], 1)

    assert torch.allclose(sliding_window(image, roi, network, mode=mode), network(image[None])[0], atol=1e-5)


def test_windows_are_monais():
    from monai.inferers.utils import sliding_window_inference

    image = torch.rand(1, 20, 18, generator=torch.Generator().manual_seed(0))
    network = partial(torch.cumsum, dim=-1)
    reference = sliding_window_inference(image[None], (8, 8), 4, network, overlap=0.5, mode="gaussian")
    assert torch.equal(sliding_window(image, (8, 8), network, mode="gaussian"), reference[0])


def test_what_the_network_returns_is_left_alone():
    kept = torch.ones(1, 3, 8, 8)
    with torch.inference_mode():
        frozen = kept.clone()
    sliding = partial(sliding_window, torch.rand(1, 12, 8), (8, 8), batch=1, mode="gaussian")
    for answer in (kept, frozen):
        assert torch.allclose(sliding(lambda windows, answer=answer: answer), torch.ones(3, 12, 8))
        assert torch.equal(answer, torch.ones(1, 3, 8, 8))


def test_half_precision_is_summed_in_single_and_no_gradient_is_kept():
    weight = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    answer = sliding_window(torch.ones(1, 12, 12), (8, 8), lambda x: x.bfloat16() * weight, mode="gaussian")
    assert answer.dtype == torch.float32
    assert not answer.requires_grad
    assert torch.allclose(answer, torch.ones(1, 12, 12), rtol=0, atol=1e-6)
