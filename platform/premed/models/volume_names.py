"""Names of tensors in the checkpoints of public encoders of volumes, as the encoders here have them.

Read in the projects' own code: nnssl (OpenMind), MONAI's and research-contributions' Swin UNETR, VoCo, SuPreM.
"""

import re
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from premed.errors import UserError

NNSSL_KEYS = {  # by architecture
    "ResEncL": {"key_to_encoder": ("encoder.stages", "stages."), "key_to_stem": ("encoder.stem", "stem.")},
    "PrimusM": {"key_to_encoder": ("eva", ""), "key_to_stem": ("down_projection", "patch_embed.")},
}
"""Where an nnssl checkpoint has the encoder's two parts, unless its plan says otherwise; their names here."""
DOUBLE = ".all_modules."
"""dynamic-network-architectures saves each tensor of a convolutional block twice, by its name and by its number."""
AXES = (2, 1, 0)  # nnssl's readers give arrays in the order z, y, x
SWIN_UNETR = (  # in this order
    (r"^backbone\.", ""),  # SuPreM, and checkpoints of VoCo's training
    (r"^swin_vit\.", "swinViT."),  # research-contributions' SSLHead
    (r"^(patch_embed\.|layers[1-4]c?\.)", r"swinViT.\1"),  # model_swinvit.pt
    (r"\.mlp\.fc([12])\.", r".mlp.linear\1."),
)
SWIN_UNETR_DROPPED = re.compile(
    r"decoder[1-5]\.|out\.|norm\.|conv\.|convTrans3d\.|rotation_head\.|contrastive_head\.|proj_head\."
    r"|student\.|teacher\.|organ_embedding|precls_conv\.|GAP\.|controller\.|text_to_vision\."
)
"""Beginnings of what belongs to no encoder: decoders, and what a pre-training alone needs."""


class Renamed(NamedTuple):
    """A file's tensors."""

    state: dict[str, Tensor]
    """By the encoder's names."""
    dropped: list[str]
    """The file's names of what belongs to no encoder."""
    changed: dict[str, str]
    """How values were changed, by the encoder's names."""
    token_axes: tuple[int, ...] | None = None
    """For right, anterior and superior, the axis of the grid in whose order the file's tokens are; None: as here."""


def swinunetr(where: str, file_state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Renamed:
    """Swin UNETR's, in MONAI's names and those of its pre-trainings."""
    state, dropped = {}, []
    for name, value in file_state.items():
        new = name
        for old, replacement in SWIN_UNETR:
            new = re.sub(old, replacement, new)
        if SWIN_UNETR_DROPPED.match(new):
            dropped.append(name)
        else:
            state[new] = value.long() if new.endswith("relative_position_index") else value
    return Renamed(state, sorted(dropped), {})


def nnssl(where: str, file_state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Renamed:
    """nnssl's residual encoder, with kernels turned from the axes of its arrays to right, anterior, superior.

    content: of the checkpoint; its `nnssl_adaptation_plan` says where the encoder is. Raises UserError for a plan of
    another architecture.
    """
    renamed, axes = planned(where, file_state, content, "ResEncL")
    dropped = [name for name in renamed.dropped if not name.startswith("decoder.encoder.")]  # the encoder once more
    return turned(renamed._replace(state=without_doubles(where, renamed.state), dropped=dropped), axes)


def nnssl_primus(where: str, file_state: Mapping[str, Tensor], content: Mapping[str, Any]) -> Renamed:
    """nnssl's Primus, as `nnssl`. Its tokens are in the order of its arrays with the first two axes exchanged: so
    `EvaMAE.forward` has them, in which all its strategies but SimMIM pre-train."""
    renamed, axes = planned(where, file_state, content, "PrimusM")
    order = (0, 1, 2) if str(content.get("trainer_name")).startswith("SimMIM") else (1, 0, 2)
    return turned(renamed, axes)._replace(token_axes=tuple(order.index(axis) for axis in axes))


def planned(
    where: str, file_state: Mapping[str, Tensor], content: Mapping[str, Any], architecture: str
) -> tuple[Renamed, tuple[int, ...]]:
    """The encoder's tensors where the file's plan has them, and what `axes_of` says. UserError: see `nnssl`."""
    plan = part_of(content, "nnssl_adaptation_plan")
    if (kind := part_of(plan, "architecture_plans").get("arch_class_name", architecture)) != architecture:
        raise UserError(f"{where}: its adaptation plan says {kind}, and {architecture} is needed; take another file")
    starts = {f"{plan.get(key) or usual}.": ours for key, (usual, ours) in NNSSL_KEYS[architecture].items()}
    state, dropped = {}, []
    for name, value in file_state.items():
        start = next((each for each in starts if name.startswith(each)), None)
        if start is None:
            dropped.append(name)
        else:
            state[starts[start] + name.removeprefix(start)] = value
    return Renamed(state, sorted(dropped), {}), axes_of(where, plan)


def part_of(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a plan; empty where there is none."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def without_doubles(where: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leaves out the second names of tensors. Raises UserError where the two differ: which one counts is unknown."""
    single = {name: value for name, value in state.items() if DOUBLE not in name}
    for name in state.keys() - single.keys():
        start, _, end = name.partition(DOUBLE)
        number, _, kind = end.partition(".")
        first = single.get(f"{start}.{'conv' if number == '0' else 'norm'}.{kind}")
        if first is None or not torch.equal(first, state[name]):
            raise UserError(f"{where}: {name} is not what its other name holds; take the file as nnssl wrote it")
    return single


def axes_of(where: str, plan: Mapping[str, Any]) -> tuple[int, ...]:
    """For right, anterior and superior, the axis of nnssl's arrays: its readers', in the order of its plan."""
    order = part_of(plan, "pretrain_plan").get("transpose_forward") or (0, 1, 2)
    if not isinstance(order, (list, tuple)) or sorted(map(str, order)) != ["0", "1", "2"]:
        raise UserError(f"{where}: its plan's transpose_forward is {order}; take the file as nnssl wrote it")
    return tuple([*map(str, order)].index(str(axis)) for axis in AXES)


def turned(renamed: Renamed, axes: tuple[int, ...]) -> Renamed:
    """The same with kernels [O, I, *3 axes] whose axes are those of premed's volumes. A network of such kernels answers
    to a volume as the old one does to the volume with its axes exchanged."""
    if axes == (0, 1, 2):
        return renamed
    state, changed = dict(renamed.state), dict(renamed.changed)
    for name, value in state.items():
        if value.ndim == 5 and prod(value.shape[2:]) > 1:
            state[name] = value.permute(0, 1, *(2 + axis for axis in axes)).contiguous()
            changed[name] = "axes exchanged"
    return renamed._replace(state=state, changed=changed)
