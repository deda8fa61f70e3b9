"""models/convolutions.py: layers that see the visible patches alone."""

import math

import pytest
import torch
from torch.nn import functional as F

from premed.models.convolutions import ConvBlock, Norm, ResidualBlock, to_size, visible_patches

SIZES = [(4, 6), (4, 6, 2)]


def mask(size) -> torch.Tensor:
    """The first of two images shows three patches of 2, the second others."""
    grid = [n // 2 for n in size]
    return to_size(visible_patches(torch.tensor([[0, 3, 5], [1, 2, 4]]), grid), size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("groups", [2, 4])
@torch.no_grad()
def test_a_norm_of_a_masked_map_is_that_of_its_visible_voxels(size, groups):
    norm, visible = Norm(4, groups), mask(size)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = (3 + 2 * torch.randn(2, 4, *size)) * visible
    seen = norm(x, visible)
    assert not seen.masked_select(visible == 0).any()
    for image, each, shown in zip(x, seen, visible[:, 0] > 0, strict=True):
        alone = F.group_norm(image[:, shown][None], groups, norm.weight, norm.bias, 1e-5)[0]
        torch.testing.assert_close(each[:, shown], alone)


def test_a_norm_of_as_many_groups_as_channels_is_instance_norm():
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(Norm(4, 4)(x), F.instance_norm(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_residual_block_of_a_mask_that_hides_nothing_is_the_block(size, stride):
    block = ResidualBlock(3, 4, len(size), groups=2, stride=(stride,) * len(size))
    torch.nn.init.normal_(block.conv2.norm.weight)
    x = torch.randn(2, 3, *size)
    everything = torch.ones(2, 1, *(n // stride for n in size))
    torch.testing.assert_close(block(x, everything), block(x))


@torch.no_grad()
def test_a_dropped_branch_leaves_the_shortcut_of_its_sample_alone():
    block = ResidualBlock(4, 4, 2, groups=4, stride=(2, 2))
    torch.nn.init.ones_(block.conv2.norm.weight)
    x = torch.randn(2, 4, 4, 6)
    dropped, kept = block(x, scale=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(dropped, F.leaky_relu(F.avg_pool2d(x, 2), 0.01)[0])
    torch.testing.assert_close(kept, block(x)[1])


@torch.no_grad()
def test_a_residual_block_begins_as_its_shortcut():
    x = torch.randn(2, 4, 4, 6)
    torch.manual_seed(0)
    block = ResidualBlock(4, 4, 2, groups=4, stride=(1, 1))
    from premed.models.convolutions import init_he_weights

    init_he_weights(block)
    torch.testing.assert_close(block(x), F.leaky_relu(x, 0.01))


def test_a_convolution_sees_hidden_neighbours_as_it_sees_what_is_beyond_the_border():
    """Which is 0: in one row of patches, what a patch gives does not depend on whether hidden ones or none follow."""
    block, x = ConvBlock(1, 4, 2, groups=4), torch.randn(1, 1, 2, 4)
    shown = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]] * 2]])
    torch.testing.assert_close(block(x * shown, shown)[..., :2], block(x[..., :2]))


def test_a_mask_names_patches_in_raster_order():
    shown = to_size(visible_patches(torch.tensor([[1, 3]]), (2, 3)), (4, 6))[0, 0]
    assert shown.int().tolist() == [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 0, 0, 0, 0]] * 2
    assert math.prod(shown.shape) == 24
