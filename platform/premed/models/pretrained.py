"""Weights that others trained: a timm vision transformer's, from the Hugging Face hub or a file. Nothing is unpickled.

A file is safetensors, or a checkpoint of torch's read with `weights_only=True`; the weights may lie in it under
`state_dict` or `model` (the moving average, where timm kept one, before the last ones), their names may begin with
`module.` or `_orig_mod.`, as DDP and torch.compile leave them.
"""

import hashlib
from argparse import Namespace
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from premed.errors import UserError

FILE = "model.safetensors"  # what timm calls it on the hub
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")  # in timm's order
VARIANTS = {  # by what their tensors' names hold: networks that compute something else than our encoder
    "dist_token": "is distilled (it has a distillation token)",
    "reg_token": "has register tokens",
    ".ls1.": "scales its layers (LayerScale)",
    ".gamma_1": "scales its layers (LayerScale)",
    "norm_pre.": "normalises before its blocks (norm_pre)",
    "fc_norm.": "answers by the mean of its tokens (fc_norm), and its class token was not trained",
    "attn_pool.": "pools by attention",
    ".q_norm.": "normalises queries and keys (q_norm)",
    ".attn.norm.": "normalises inside its attention",
    ".q_bias": "has another attention (q_bias)",
    "relative_position": "has relative positions",
    "rel_pos": "has relative positions",
    "rope.": "has rotary positions",
    "patch_embed.backbone.": "is a hybrid: its stem is a convolutional network",
    ".mlp.fc1_g.": "has gated MLPs",
    ".mlp.w12.": "has gated MLPs",
}


class ModelInfo(NamedTuple):
    """What timm knows of a model by its name."""

    repository: str | None  # on the hub
    mean: tuple[float, ...]  # of the pixels in [0, 1] that it was trained on, by channel
    std: tuple[float, ...]
    width: int
    depth: int
    heads: int
    names: tuple[str, ...]  # of its tensors


@cache
def model_info(model: str) -> ModelInfo:
    """UserError where timm has no vision transformer of that name."""
    import timm
    from timm.models import get_pretrained_cfg
    from timm.models.vision_transformer import VisionTransformer

    try:
        about = get_pretrained_cfg(model)
    except RuntimeError:  # what stands after the dot is unknown
        about = None
    if about is None:
        close = get_close_matches(model, timm.list_models(pretrained=True), 3, 0.5)
        mend = f"did you mean {', '.join(close)}?" if close else "timm.list_models('vit_*') lists them"
        raise UserError(f"pretext.model: timm has no {model!r}; {mend}")
    with torch.device("meta"):
        network = timm.create_model(model, num_classes=0)
    if not isinstance(network, VisionTransformer):
        raise UserError(f"pretext.model: {model} is no vision transformer; name one, such as vit_base_patch16_224")
    shape = network.embed_dim, len(network.blocks), network.blocks[0].attn.num_heads  # type: ignore[union-attr]
    return ModelInfo(about.hf_hub_id, about.mean, about.std, *shape, tuple(network.state_dict()))  # type: ignore[arg-type]


def download(model: str) -> Path:
    """The model's file, from where an earlier call (or another program) put it, or from the hub."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = model_info(model).repository
    mend = "give a file: pretext.weights=FILE"
    if repository is None:
        raise UserError(f"pretext.model: {model} is not on the hub; {mend}")
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, FILE, local_files_only=True))
    try:
        get_hf_file_metadata(
            hf_hub_url(repository, FILE), timeout=10
        )  # the download would try for half a minute, aloud
        return Path(hf_hub_download(repository, FILE))
    except Exception as error:  # noqa: BLE001 - the hub's, its HTTP library's or the system's: there is no file
        raise UserError(
            f"pretext.model: {model} is not on this machine and cannot be had from the hub "
            f"({type(error).__name__}); go online, or {mend}"
        ) from error


def sha256(path: Path) -> str:
    """Of a file's content, as hex; UserError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"pretext.weights: {path} cannot be read ({error.strerror}); check the path") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by timm's names, in float32."""
    try:
        with path.open("rb") as stream:
            safe = stream.read(9)[8:] == b"{"  # safetensors: eight bytes of length, then JSON
        content = _safetensors(path) if safe else _torch(path)
    except OSError as error:
        raise UserError(f"pretext.weights: {path} cannot be read ({error.strerror}); check the path") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(w, Tensor) for w in content.values()):
        raise UserError(f"pretext.weights: {path} holds no state_dict; save the network's, as safetensors")
    from timm.models import clean_state_dict

    return {name: w.float() for name, w in clean_state_dict(content).items()}


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"pretext.weights: {path} is damaged ({error}); copy it again") from None


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([Namespace]):  # a training's arguments, beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - whatever the reader stumbles over, there are no weights to be had
        raise UserError(
            f"pretext.weights: {path} is neither safetensors nor a torch checkpoint of nothing but weights; "
            "save the network's state_dict as safetensors"
        ) from None


def refuse_variants(names: Iterable[str], where: str) -> None:
    """UserError for a vision transformer whose tensors tell that it is another kind of network than our encoder."""
    for name in names:
        for part, what in VARIANTS.items():
            if part in name:
                raise UserError(f"{where}: {what}: {name}; take a plain ViT, such as vit_base_patch16_224")
