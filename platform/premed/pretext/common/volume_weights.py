"""Weights of public encoders of volumes, for the encoders `resenc`, `swin` and `vit` (as Primus).

A file's tensors are renamed (`models/volume_names.py`) and loaded strictly: what is missing, of another shape or in
nobody's way is refused, and what belongs to no encoder (decoders, heads of a pre-training) is left out and listed.
Changed are, at the most:

- kernels of nnssl's encoders, whose axes are exchanged: they saw arrays in the order z, y, x; of its Primus, the order
  of positions, which are resized to the task's grid, and which channels of queries and keys are turned by which axis;
- the kernels that see the image, where the task has C channels and the file one: each gets it, divided by C, so that an
  image that is the same in all channels has the response of the original to it in one.

Nothing of the task's preparation is folded into the weights: what an encoder was trained on is in its entry
(`models/public_volumes.py`), and `differences` says where the task differs. What a format never has, Swin UNETR's
`skips` in `swinunetr-ssl`, begins at initial values, the same for every seed.
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from premed.contracts import Encoder, Task
from premed.errors import UserError
from premed.models import volume_names
from premed.models.encoders.resenc import ResEnc
from premed.models.encoders.swin import Swin
from premed.models.encoders.vit import ViT
from premed.models.network import seeded_init
from premed.models.patches import resize_positions
from premed.models.public_volumes import PUBLIC_VOLUME_ENCODERS, SKIPS, VolumeEncoder
from premed.pretext.common.timm_weights import refuse_misfits, sizes
from premed.pretext.common.vit_weights import format_sizes

FORMATS = {
    "nnssl": (ResEnc, volume_names.nnssl),
    "nnssl_primus": (ViT, volume_names.nnssl_primus),
    "swinunetr": (Swin, volume_names.swinunetr),
}
PRIMUS_HEAD = 72  # channels of a head of Primus-M, which no tensor shows
SEE_THE_IMAGE = (
    "stem.convs.0.conv.weight",
    "patch_embed.proj.weight",
    "swinViT.patch_embed.proj.weight",
    "encoder1.layer.conv1.conv.weight",
    "encoder1.layer.conv3.conv.weight",
)


def fitted(
    where: str,
    file_state: Mapping[str, Tensor],
    content: Mapping[str, Any],
    encoder: Encoder,
    task: Task,
    model: str,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, and what was kept, changed, missing and dropped.

    where: the file, for a UserError where it does not fit. content: all that it holds. model: the entry's name.
    """
    entry = PUBLIC_VOLUME_ENCODERS[model]
    refuse_other_network(encoder, task, model, entry)
    renamed = FORMATS[entry.names][1](where, file_state, content)
    own, changed = sizes(encoder.state_dict()), dict(renamed.changed)
    state = {name: value for name, value in renamed.state.items() if name in own or not name.startswith(SKIPS)}
    dropped = sorted([*renamed.dropped, *(renamed.state.keys() - state.keys())])
    if renamed.token_axes is not None and isinstance(encoder, ViT):
        reorder_tokens(where, state, encoder, renamed.token_axes, changed)
    spread_channels(where, state, task, changed)
    missing = sorted(name for name in own.keys() - state.keys() if name.startswith(entry.absent))
    remedy = "take another file, or name the model that it is of (pretext.model), with its encoder; this one's is "
    refuse_misfits(
        where, sizes(state), {name: own[name] for name in own if name not in missing}, model, remedy + entry.network()
    )
    state |= initial_values(encoder, missing)
    counts = {"kept": len(state) - len(changed) - len(missing), "loaded": len(state) - len(missing)}
    return state, counts | {"changed": changed, "missing": missing, "dropped": dropped}


def refuse_other_network(encoder: Encoder, task: Task, model: str, entry: VolumeEncoder) -> None:
    """Raises UserError if the encoder is another than the entry's in what names and shapes do not show."""
    if task.dims != 3:
        raise UserError(f"pretext.model: {model} is for volumes, and {task.name} has pictures; take another")
    if not isinstance(encoder, FORMATS[entry.names][0]):
        raise UserError(f"encoder: {model} has another network; set {entry.network()}")
    if isinstance(encoder, ViT):
        config = encoder.config
        if not config.rotary or config.position != "learned" or config.heads * PRIMUS_HEAD != config.width:
            how = f"rotary and learned positions, and heads of {PRIMUS_HEAD} channels"
            raise UserError(f"encoder: {model} has {how}; set {entry.network()}")
    if not isinstance(encoder, ResEnc):
        return
    halved = all(scale.stride == (2**i,) * 3 for i, scale in enumerate(encoder.pyramid))
    last: Any = encoder.stages[-1]
    if not halved or last.blocks[0].conv1.norm.groups != encoder.width:
        raise UserError(f"encoder: {model} halves all axes at each stage and has instance norms; set {entry.network()}")


def reorder_tokens(
    where: str, state: dict[str, Tensor], encoder: ViT, axes: tuple[int, ...], changed: dict[str, str]
) -> None:
    """Makes positions [1, n * n * n, D] those of the encoder's grid, and queries and keys have the channels that rotary
    positions turn by right, anterior and superior in this order; reports to `changed`. axes: the file's of these."""
    places = state.get("pos_embed")
    if places is not None and places.ndim == 3:
        side = round(places.shape[1] ** (1 / 3))
        if places.shape[1] != side**3:
            raise UserError(f"{where}: its {places.shape[1]} positions are no cube; take another file")
        grid = places.unflatten(1, (side,) * 3).permute(0, *(1 + axis for axis in axes), 4).flatten(1, 3)
        state["pos_embed"], changed["pos_embed"] = grid, "axes exchanged"
        if encoder.grid != (side,) * 3:
            state["pos_embed"] = resize_positions(grid, (side,) * 3, encoder.grid)
            changed["pos_embed"] += f", {format_sizes((side,) * 3)} to {format_sizes(encoder.grid)}"
    for name, value in state.items():
        turns = ".attn.q_proj." in name or ".attn.k_proj." in name
        if turns and value.shape[0] == encoder.width:  # else it is of another network, and is refused for that
            by_axis = value.unflatten(0, (encoder.config.heads, 3, -1))  # [heads, axes, channels, …]
            state[name], changed[name] = by_axis[:, list(axes)].flatten(0, 2), "axes exchanged"


def spread_channels(where: str, state: dict[str, Tensor], task: Task, changed: dict[str, str]) -> None:
    """Makes kernels [D, 1, *3 axes] that see the image ones [D, C, *3 axes] for the task; reports to `changed`."""
    for name in SEE_THE_IMAGE:
        kernel = state.get(name)
        if kernel is None or kernel.ndim != 5 or kernel.shape[1] == task.channels:
            continue
        if kernel.shape[1] != 1:
            raise UserError(
                f"{where}: {name} has {kernel.shape[1]} input channels and {task.name} has {task.channels}; "
                "use weights with 1"
            )
        state[name] = kernel.repeat(1, task.channels, 1, 1, 1) / task.channels
        how = f"1 channel to {task.channels}"
        changed[name] = f"{changed[name]}, {how}" if name in changed else how


def initial_values(encoder: Encoder, names: Iterable[str]) -> dict[str, Tensor]:
    """The initial values of some of an encoder's tensors (it may be on the meta device), the same at each call."""
    names, values = set(names), {}
    for part in sorted({name.partition(".")[0] for name in names}):
        module = deepcopy(encoder.get_submodule(part)).to_empty(device="cpu")
        with seeded_init(0, f"public encoder, {part}"):
            for each in module.modules():
                if isinstance(each, nn.Conv2d | nn.Conv3d):
                    each.reset_parameters()
        values |= {f"{part}.{name}": value for name, value in module.state_dict().items() if f"{part}.{name}" in names}
    return values
