"""Others' code from checkouts, run on today's libraries: names that they import and that are gone are put in place.

Nothing of it is copied here, and nothing of it is changed: after the import all names are as they were before.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

from premed.benchmarks.settings import Settings
from premed.errors import UserError

MAE, SELFMEDMAE = "mae", "selfmedmae"
NAMES = {MAE: "facebookresearch/mae", SELFMEDMAE: "SelfMedMAE"}
OPTIONS = {MAE: "--peer-mae", SELFMEDMAE: "--peer-selfmedmae"}
FILES = {MAE: "models_mae.py", SELFMEDMAE: "lib/models/mae3d.py"}
PACKAGES = ("lib", "networks", "models", "util", "models_mae")  # what the checkouts call theirs


def refuse_others(peers: dict[str, Path | None]) -> dict[str, Path]:
    """The folders that are given. Raises UserError for one that is not a checkout of its peer."""
    given = {name: folder for name, folder in peers.items() if folder is not None}
    for name, folder in given.items():
        if not (folder / FILES[name]).is_file():
            raise UserError(f"{OPTIONS[name]}: {folder} has no {FILES[name]}; give a checkout of {NAMES[name]}")
    return given


def missing(name: str) -> str:
    """Why a row without its peer is not measured."""
    return f"no checkout of {NAMES[name]} is given ({OPTIONS[name]} DIR)"


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """A context in which the checkout's modules can be imported and built. Raises UserError if that fails."""
    import numpy as np
    import timm.layers
    from timm.models import vision_transformer

    block = vision_transformer.Block

    def old_block(*args: Any, drop: float = 0.0, qk_scale: None = None, **options: Any) -> Any:
        return block(*args, proj_drop=drop, **options)  # timm's names until 0.9

    helpers, own = ModuleType("timm.models.layers.helpers"), {*sys.modules}
    vars(helpers).update(to_2tuple=timm.layers.to_2tuple, to_3tuple=timm.layers.to_3tuple)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    try:
        sys.modules[helpers.__name__] = helpers
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            stack.enter_context(patch.object(vision_transformer, "Block", old_block))
            stack.enter_context(patch.object(np, "float", float, create=True))
            stack.enter_context(patch.object(sys, "path", [str(folder), str(folder / "lib"), *sys.path]))
            for name in before:
                del sys.modules[name]
            yield
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"{folder}: cannot be used with the packages here ({error}); leave this peer out") from error
    finally:
        for name in {*sys.modules} - own:
            if name == helpers.__name__ or name.partition(".")[0] in PACKAGES:
                del sys.modules[name]
        sys.modules.update(before)


def facebook_mae(settings: Settings, **sizes: Any) -> Any:
    """facebookresearch/mae's `MaskedAutoencoderViT` with normalised targets."""
    from torch import nn

    with importing(settings.peers[MAE]):
        import models_mae  # type: ignore[import-not-found]

        norm = partial(nn.LayerNorm, eps=1e-6)
        return models_mae.MaskedAutoencoderViT(norm_layer=norm, norm_pix_loss=True, **sizes)


def selfmedmae_mae(settings: Settings, **sizes: Any) -> Any:
    """SelfMedMAE's `MAE3D`, built as its trainer builds it."""
    with importing(settings.peers[SELFMEDMAE]):
        from lib import models, networks  # type: ignore[import-not-found]

        args = SimpleNamespace(pos_embed_type="sincos", patchembed="PatchEmbed3D", **sizes)
        return models.MAE3D(networks.MAEViTEncoder, networks.MAEViTDecoder, args)


def selfmedmae_unetr(settings: Settings, **sizes: Any) -> Any:
    """SelfMedMAE's `UNETR3D`, built as its trainer builds it; without drop path."""
    with importing(settings.peers[SELFMEDMAE]):
        from lib import models, networks  # type: ignore[import-not-found]

        args = SimpleNamespace(spatial_dim=3, drop_path=0.0, **sizes)
        return models.UNETR3D(networks.ViTBackbone, networks.UNETR_decoder, args)
