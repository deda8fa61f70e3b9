"""Pretrained weights of a timm vision transformer, from the Hugging Face hub or a file. Nothing is unpickled.

A file is safetensors, or a torch checkpoint, read with `weights_only=True`. The weights may be under `state_dict`,
`model`, … (`WRAPPERS`; timm's moving average takes precedence), and their names may begin with `module.` or
`_orig_mod.`, the prefixes of DDP and torch.compile.
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
from premed.safety.files import refuse_irregular

FILE = "model.safetensors"  # timm's file name on the hub
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "teacher", "network_weights", "net")
"""In timm's order; then DeepSpeed's (EVA), that of DINOv2's own training, nnssl's and SuPreM's."""
VARIANTS = {  # by a part of their tensors' names: models that compute something other than our encoder
    "dist_token": "is distilled (it has a distillation token)",
    "reg_token": "has register tokens",
    ".ls1.": "scales its layers (LayerScale)",
    ".gamma_1": "scales its layers (LayerScale)",
    "norm_pre.": "normalises before its blocks (norm_pre)",
    "fc_norm.": "classifies by the mean of its tokens (fc_norm), and its class token was not trained",
    "attn_pool.": "pools by attention",
    ".q_norm.": "normalises queries and keys (q_norm)",
    ".attn.norm.": "normalises inside its attention",
    ".q_bias": "has separate query and value biases (q_bias)",
    "relative_position": "has relative positions",
    "rel_pos": "has relative positions",
    "rope.": "has rotary positions",
    "patch_embed.backbone.": "is a hybrid: its stem is a convolutional network",
    ".mlp.fc1_g.": "has gated MLPs",
    ".mlp.w12.": "has gated MLPs",
}


class ModelInfo(NamedTuple):
    """What timm knows of a model."""

    repository: str | None  # on the hub; None: timm offers no weights there
    mean: tuple[float, ...]  # per channel, of the training pixels in [0, 1]
    std: tuple[float, ...]
    width: int
    depth: int
    heads: int
    names: tuple[str, ...]  # of its tensors


@cache
def model_info(model: str) -> ModelInfo:
    """Looks a model up in timm. Raises UserError if timm has no vision transformer of that name."""
    import timm
    from timm.models import get_pretrained_cfg
    from timm.models.vision_transformer import VisionTransformer

    try:
        about = get_pretrained_cfg(model)
    except RuntimeError:  # the tag after the dot is unknown
        about = None
    if about is None:
        close = get_close_matches(model, timm.list_models(pretrained=True), 3, 0.5)
        remedy = f"did you mean {', '.join(close)}?" if close else "timm.list_models('vit_*') lists them"
        raise UserError(f"pretext.model: timm has no {model!r}; {remedy}")
    with torch.device("meta"):
        network = timm.create_model(model, num_classes=0)
    if not isinstance(network, VisionTransformer):
        raise UserError(f"pretext.model: {model} is no vision transformer; name one, such as vit_base_patch16_224")
    shape = network.embed_dim, len(network.blocks), network.blocks[0].attn.num_heads  # type: ignore[union-attr]
    return ModelInfo(about.hf_hub_id, about.mean, about.std, *shape, tuple(network.state_dict()))  # type: ignore[arg-type]


def download(model: str, repository: str | None = None, file: str = FILE) -> Path:
    """Returns the model's file, from the hub's local cache or the hub. Raises UserError if neither has it.

    repository, file: where it is there; None: as timm says.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = repository or model_info(model).repository
    remedy = "give a file: pretext.weights=FILE"
    if repository is None:
        raise UserError(f"pretext.model: {model} is not on the hub; {remedy}")
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(repository, file, local_files_only=True))
    try:
        get_hf_file_metadata(
            hf_hub_url(repository, file), timeout=10
        )  # without this check, the download retries for half a minute and prints each try
        return Path(hf_hub_download(repository, file))
    except Exception as error:  # noqa: BLE001 - whether the hub, its HTTP library or the system fails: there is no file
        raise UserError(
            f"pretext.model: {model} is not on this machine and cannot be downloaded from the hub "
            f"({type(error).__name__}); go online, or {remedy}"
        ) from error


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, as hex. Raises UserError if it cannot be read."""
    try:
        refuse_irregular(path)
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"pretext.weights: {path} cannot be read ({error.strerror}); check the path") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of a file, by timm's names, as float32. Raises UserError if it holds none."""
    return read_checkpoint(path)[0]


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_weights`; and all that the file holds, such as a plan beside the weights."""
    try:
        refuse_irregular(path)
        with path.open("rb") as stream:
            safe = stream.read(9)[8:] == b"{"  # safetensors: eight bytes of length, then JSON
        content = _safetensors(path) if safe else _torch(path)
    except OSError as error:
        raise UserError(f"pretext.weights: {path} cannot be read ({error.strerror}); check the path") from None
    whole = content
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(map(is_named_tensor, content.items())):
        raise UserError(f"pretext.weights: {path} holds no state_dict; save the network's, as safetensors")
    from timm.models import clean_state_dict

    for name, w in content.items():
        if what := not_numbers(w):
            raise UserError(f"pretext.weights: {path}: {name} is {what}; save the weights as float32")
    for name, w in content.items():  # a few bytes that are read over and over, and would take all memory as numbers
        if w.numel() * w.element_size() > w.untyped_storage().nbytes():
            raise UserError(f"pretext.weights: {path}: {name} repeats its numbers; save it .contiguous()")
    return {name: w.float() for name, w in clean_state_dict(content).items()}, whole


def not_numbers(w: Tensor) -> str:
    """What a tensor is that does not hold a weight's own numbers; "" if it does. Single integers are counters."""
    if w.is_meta:
        return "empty (on the device meta)"
    if w.is_quantized or (w.ndim > 1 and w.dtype in (torch.int8, torch.uint8, torch.bool)):
        return f"quantised ({w.dtype})"
    return "sparse" if w.layout is not torch.strided else "complex" if w.is_complex() else ""


def is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"pretext.weights: {path} is damaged ({error}); copy it again") from None


def _torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([Namespace]):  # training arguments saved beside the weights
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - whatever the reader raises, there are no weights
        raise UserError(
            f"pretext.weights: {path} is neither safetensors nor a torch checkpoint of weights only; "
            "save the network's state_dict as safetensors"
        ) from None


def refuse_variants(names: Iterable[str], where: str) -> None:
    """Raises UserError if tensor names show that a vision transformer is of another kind than our encoder."""
    for name in names:
        for part, what in VARIANTS.items():
            if part in name:
                raise UserError(
                    f"{where}: {what}: {name}; take a plain ViT, such as vit_base_patch16_224, or encoder.name=timm"
                )
