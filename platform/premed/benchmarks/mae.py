"""Rows of masked autoencoding: a training step beside the papers' code, with the same weights and masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from premed.benchmarks import peers, steps
from premed.benchmarks.floors import compute_floor, flops_of
from premed.benchmarks.result import Target
from premed.benchmarks.settings import Comparison, NotMeasured, Settings
from premed.contracts import Batch
from premed.models.encoders import vit
from premed.pretext import mae

RATIO, PATCH = 0.75, 16


@dataclass(frozen=True)
class Sizes:
    """width, depth, heads: of the encoder. decoder: the same of the decoder."""

    roi: tuple[int, ...]
    batch: int
    channels: int
    encoder: tuple[int, int, int] = (768, 12, 12)
    decoder: tuple[int, int, int] = (384, 8, 12)

    def __str__(self) -> str:
        (width, depth, heads), decoder = self.encoder, self.decoder
        roi = " × ".join(map(str, self.roi))
        return (
            f"{self.batch} × {self.channels} × {roi}, patch {PATCH}, {RATIO:.0%} hidden; encoder {width} × {depth}, "
            f"{heads} heads, decoder {decoder[0]} × {decoder[1]}, {decoder[2]} heads"
        )


TINY: Any = {"encoder": (192, 4, 3), "decoder": (96, 2, 3)}
VOLUMES = Sizes((96, 96, 96), 4, 1), Sizes((48, 48, 48), 4, 1, **TINY)
PICTURES = Sizes((224, 224), 8, 3, decoder=(512, 8, 16)), Sizes((96, 96), 8, 3, **TINY)
VOLUMES_ON_GPU, PICTURES_ON_GPU = 128, 256  # images of a step at full size


@dataclass(frozen=True)
class Peer:
    """A peer's code. names: beginnings of premed's parameter names, and what the peer calls them."""

    key: str
    build: Callable[[Settings, Sizes], Any]
    names: dict[str, str]
    positions: tuple[str, str]  # of the encoder and of the decoder
    class_row: bool  # whether positions have a row for the class token
    same_targets: Callable[[Any], Any]  # a context in which its targets are normalised as premed's


def volumes(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """Row mae-3d."""
    yield compare(settings, SELFMEDMAE, sizes_of(settings, VOLUMES, VOLUMES_ON_GPU), target=Target(1.2, 1.3))


def pictures(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """Row mae-2d."""
    yield compare(settings, FACEBOOK, sizes_of(settings, PICTURES, PICTURES_ON_GPU), target=Target(1.15, 1.3))


def volumes_bf16(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """Row mae-3d-bf16."""
    yield from compare_bf16(settings, SELFMEDMAE, sizes_of(settings, VOLUMES, VOLUMES_ON_GPU))


def pictures_bf16(settings: Settings) -> Iterator[Comparison | NotMeasured]:
    """Row mae-2d-bf16."""
    yield from compare_bf16(settings, FACEBOOK, sizes_of(settings, PICTURES, PICTURES_ON_GPU))


def sizes_of(settings: Settings, sizes: tuple[Sizes, Sizes], on_gpu: int) -> Sizes:
    """The full or the short sizes; on_gpu: images of a step on a GPU."""
    chosen = settings.size(*sizes)
    return replace(chosen, batch=settings.batch(chosen.batch, on_gpu))


def compare_bf16(settings: Settings, peer: Peer, sizes: Sizes) -> Iterator[Comparison | NotMeasured]:
    """Beside the peer in fp32, as it computes on a CPU, and beside its autocast."""
    if not steps.has_bf16(settings):
        yield NotMeasured(peers.NAMES[peer.key], steps.NO_BF16)
        return
    bf16 = torch.bfloat16
    yield compare(settings, peer, sizes, bf16, target=Target(3, 4))
    yield compare(settings, peer, sizes, bf16, bf16, target=Target(1.5, 4))


def compare(
    settings: Settings,
    peer: Peer,
    sizes: Sizes,
    precision: torch.dtype = torch.float32,
    peer_precision: torch.dtype = torch.float32,
    *,
    target: Target,
) -> Comparison | NotMeasured:
    name = peers.NAMES[peer.key]
    if precision != torch.float32:
        name += " in fp32" if peer_precision == torch.float32 else " with autocast to bf16"
    if peer.key not in settings.peers:
        return NotMeasured(name, peers.missing(peer.key))
    torch.manual_seed(0)
    objective = build(sizes).to(settings.device)
    model = peer.build(settings, sizes).to(settings.device)
    copy_weights(objective, model, peer)
    image = torch.randn(sizes.batch, sizes.channels, *sizes.roi).to(settings.device)
    names = tuple(map(str, range(sizes.batch)))
    batch = Batch(image, torch.arange(sizes.batch, device=settings.device), names)

    def loss() -> Tensor:
        value = model(image)
        return value[0] if isinstance(value, tuple) else value

    ours = steps.loss_and_gradients(settings, objective, lambda: objective(batch, 0.0)[0], precision)
    with the_mask(objective, batch), peer.same_targets(model):
        theirs = steps.loss_and_gradients(settings, model, loss)
    same = steps.assert_same_training((ours[0], renamed(ours[1], peer, sizes)), theirs, precision)
    flops = flops_of(lambda: steps.loss_and_gradients(settings, objective, lambda: objective(batch, 0.0)[0], precision))
    return Comparison(
        name,
        steps.premed_step(objective, batch, precision),
        steps.peer_step(settings, model, loss, peer_precision),
        unit="a step",
        sizes=str(sizes),
        same=same,
        floor=lambda: compute_floor(settings, flops, precision),
        target=target,
        samples=sizes.batch,
    )


def build(sizes: Sizes) -> mae.MAE:
    """premed's objective, as a stage builds it."""
    width, depth, heads = sizes.encoder
    encoder = vit.build(vit.Config(width=width, depth=depth, heads=heads, patch=PATCH), sizes.channels, sizes.roi)
    width, depth, heads = sizes.decoder
    config = mae.Config(mask_ratio=RATIO, decoder_width=width, decoder_depth=depth, decoder_heads=heads)
    task: Any = SimpleNamespace(channels=sizes.channels)
    return mae.MAE(config, encoder, task, steps.DECAY)


# ---- the same weights, masks and targets


def rename(name: str, peer: Peer) -> str:
    """The peer's name of one of premed's parameters."""
    for own, other in peer.names.items():
        if name.startswith(own):
            return other + name.removeprefix(own)
    return name


def reorder(name: str, value: Tensor, channels: int) -> Tensor:
    """The last layer's rows in the order of pixels and then channels; premed's are in that of channels, then pixels."""
    if not name.startswith("decoder.predict") or channels == 1:
        return value
    return value.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def copy_weights(objective: mae.MAE, model: nn.Module, peer: Peer) -> None:
    """Gives the peer premed's weights, all of them."""
    channels, encoder, decoder = objective.task.channels, objective.encoder, objective.decoder
    assert isinstance(encoder, vit.ViT) and isinstance(decoder, mae.Decoder) and encoder.pos_embed is not None
    left = dict(model.named_parameters())
    own = {name: each for name, each in objective.named_parameters() if name != "encoder.pos_embed"}
    for name, value in own.items():
        left.pop(rename(name, peer)).copy_(reorder(name, value, channels))
    for name, value in zip(peer.positions, (encoder.pos_embed, decoder.positions), strict=True):
        left.pop(name).copy_(value if peer.class_row else value[:, 1:])
    assert not left, f"weights that were not given: {', '.join(left)}"


def renamed(gradients: dict[str, Tensor], peer: Peer, sizes: Sizes) -> dict[str, Tensor]:
    """premed's gradients by the peer's names."""
    return {rename(name, peer): reorder(name, each, sizes.channels) for name, each in gradients.items()}


@contextmanager
def the_mask(objective: mae.MAE, batch: Batch) -> Iterator[None]:
    """A context in which a peer, which sorts random numbers, hides what premed hides in that batch."""
    order = torch.cat(objective.mask(batch.keys), dim=1)
    numbers = order.argsort(dim=1).float() / prod(objective.encoder.grid)
    with patch("torch.rand", lambda *_, **__: numbers):
        yield


@contextmanager
def biased_variance(model: Any) -> Iterator[None]:
    """A context in which facebookresearch/mae divides by n for a patch's variance; it divides by n - 1."""
    patchify = model.patchify
    model.norm_pix_loss = False
    model.patchify = lambda image: F.layer_norm(patches := patchify(image), patches.shape[-1:], eps=1e-6)
    try:
        yield
    finally:
        model.norm_pix_loss = True
        del model.patchify


@contextmanager
def as_they_are(model: Any) -> Iterator[None]:
    yield


# ---- the peers


def build_selfmedmae(settings: Settings, sizes: Sizes) -> Any:
    common = {"input_size": sizes.roi[0], "patch_size": PATCH, "in_chans": sizes.channels, "mask_ratio": RATIO}
    fields = ("embed_dim", "depth", "num_heads")
    encoder = {f"encoder_{name}": value for name, value in zip(fields, sizes.encoder, strict=True)}
    decoder = {f"decoder_{name}": value for name, value in zip(fields, sizes.decoder, strict=True)}
    return peers.selfmedmae_mae(settings, **common, **encoder, **decoder)


def build_facebook(settings: Settings, sizes: Sizes) -> Any:
    fields = ("embed_dim", "depth", "num_heads")
    encoder = dict(zip(fields, sizes.encoder, strict=True))
    decoder = {f"decoder_{name}": value for name, value in zip(fields, sizes.decoder, strict=True)}
    image = {"img_size": sizes.roi[0], "patch_size": PATCH, "in_chans": sizes.channels}
    return peers.facebook_mae(settings, **image, **encoder, **decoder)


LAST = {"decoder.mask_token": "mask_token"}
SELFMEDMAE = Peer(
    peers.SELFMEDMAE,
    build_selfmedmae,
    {"decoder.embed.": "encoder_to_decoder.", "decoder.predict.": "decoder.head."} | LAST,
    ("encoder_pos_embed", "decoder_pos_embed"),
    class_row=False,
    same_targets=as_they_are,
)
FACEBOOK = Peer(
    peers.MAE,
    build_facebook,
    LAST
    | {"decoder.predict.": "decoder_pred.", "encoder.": ""}
    | {f"decoder.{part}": f"decoder_{part}" for part in ("embed", "blocks", "norm")},
    ("pos_embed", "decoder_pos_embed"),
    class_row=True,
    same_targets=biased_variance,
)
