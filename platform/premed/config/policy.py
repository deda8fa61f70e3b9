"""`finetune.policy`: which weights fine-tuning trains, and from when on. `training/policy.py` does it."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from premed.config.spec import Spec


class Full(Spec):
    """full: all weights."""

    name: Literal["full"] = "full"


class HeadOnly(Spec):
    """head: the head alone, on a frozen encoder (linear probing by gradient descent)."""

    name: Literal["head"] = "head"


class LastN(Spec):
    """last_n:"""

    name: Literal["last_n"] = "last_n"
    blocks: int = Field(1, ge=1)
    """How many of the encoder's last blocks are trained, with what comes after them and the head; blocks are counted
    as for `layer_decay`, a decoder's too."""


class LoRA(Spec):
    """lora:"""

    name: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1)
    """Rank of the update of each matrix of the encoder's blocks (Hu 2022, arXiv:2106.09685); the head is trained whole.
    A matrix that has no higher rank itself is left as it is."""
    alpha: float = Field(16.0, gt=0)
    """The update is multiplied by `alpha` / `rank`."""


class WarmupThenFull(Spec):
    """warmup_then_full:"""

    name: Literal["warmup_then_full"] = "warmup_then_full"
    share: float = Field(0.1, gt=0, lt=1)
    """Share of the steps, the first ones, in which the head alone is trained (Kumar 2022, arXiv:2202.10054)."""


KINDS: dict[str, type[Spec]] = {
    "full": Full,
    "head": HeadOnly,
    "last_n": LastN,
    "lora": LoRA,
    "warmup_then_full": WarmupThenFull,
}


def _nameless(fields: dict[str, Any]) -> str:
    """What is missing: the name of the kind that has these fields, where one has."""
    owner = next((kind for kind, spec in KINDS.items() if fields.keys() <= spec.model_fields.keys()), None)
    if owner is None:
        return f"name is missing; it is one of {', '.join(KINDS)}"
    return f"name is missing; {' and '.join(fields)} of {owner}: set finetune.policy.name={owner}, too"


def _parse_policy(value: Any) -> Any:
    if isinstance(value, Spec):
        return value
    fields = value if isinstance(value, dict) else {"name": value}
    if fields and "name" not in fields:
        raise ValueError(_nameless(fields))
    if not isinstance(name := fields.get("name"), str) or name not in KINDS:
        raise ValueError(f"{name!r} is not one of {', '.join(KINDS)}")
    return KINDS[name].model_validate(fields)


Policy = Annotated[Full | HeadOnly | LastN | LoRA | WarmupThenFull, BeforeValidator(_parse_policy)]
