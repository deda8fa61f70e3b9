"""Weights of public encoders for the encoder `timm`: read under each project's own names, resized by timm's functions.

A file's tensors are renamed (`models/checkpoint_names.py`, then timm's own converter for the network), and loaded
strictly: what is missing, of another shape or in nobody's way is refused, and what belongs to no encoder (classifiers,
decoders, mask tokens) is left out and listed. Changed are, at the most:

- positions, to the task's grid (timm: bicubic, antialiased), and the stem's kernel to another patch (timm: FlexiViT's
  PI-resize);
- the stem's kernel and bias, by the task's normalisation, as `vit_weights.py` says it, and its channels by timm's
  `adapt_input_conv`: one gets the sum over red, green and blue; C others get red, green, blue, red, …, times 3 / C. A
  channel is normalised as the colour whose kernel it gets. A stem of the task's own number of channels, other than 3,
  stays as it is.
"""

import sys
from collections.abc import Callable, Mapping
from math import isqrt, prod
from typing import Any

from torch import Tensor, nn

from premed.contracts import Task
from premed.errors import UserError, first_line
from premed.models.checkpoint_names import DROPPED, without_biases_of_keys, without_wrappers
from premed.models.encoders.timm import TimmEncoder
from premed.pretext.common.vit_weights import format_sizes, rescaling

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]
ANOTHER = "name the model that it is of (encoder.model, pretext.model)"


def fitted(
    where: str, file_state: dict[str, Tensor], encoder: TimmEncoder, task: Task, mean_std: MeanStd
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the encoder's state, and what was kept, changed and dropped.

    where: the file, for a UserError where it does not fit. mean_std: of the pixels that it was trained on.
    """
    shapes = sizes(encoder.state_dict())
    before = without_wrappers(file_state, where)
    before = without_biases_of_keys(before, set(shapes), where)
    try:
        state = dict(converter(encoder.network)(dict(before), encoder.network))
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        refuse_misfits(where, sizes(before), shapes, encoder.config.model, ANOTHER)
        raise UserError(f"{where}: timm cannot read it as {encoder.config.model} ({first_line(error)})") from None
    state = {name: value for name, value in state.items() if name in shapes or not name.startswith(DROPPED)}
    changed = {name: how for name, value in state.items() if (how := change(before, name, value, encoder))}
    stem = next(name for name, module in encoder.network.named_modules() if isinstance(module, nn.Conv2d))
    adapt_stem(where, state, stem, shapes[f"{stem}.weight"], task, mean_std, changed)
    refuse_misfits(where, sizes(state), shapes, encoder.config.model, ANOTHER)
    used = {id(value) for value in state.values()}
    dropped = sorted(name for name, value in before.items() if name not in state and id(value) not in used)
    report = {"kept": len(state) - len(changed), "changed": changed, "dropped": dropped}
    return state, report | {"loaded": len(state), "missing": []}


def sizes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor."""
    return {name: tuple(value.shape) for name, value in state.items()}


def converter(network: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    """timm's function from a project's checkpoint to this network's names and sizes."""
    return sys.modules[type(network).__module__].checkpoint_filter_fn


def change(before: dict[str, Tensor], name: str, value: Tensor, encoder: TimmEncoder) -> str | None:
    """How timm's converter changed a tensor; None if it only renamed it, or made it of a part of one."""
    theirs = before.get(name)
    if theirs is None or theirs is value:
        return None
    if name == "pos_embed" and theirs.shape != value.shape:
        prefix = value.shape[1] - prod(encoder.grid)
        return f"{format_sizes((isqrt(theirs.shape[1] - prefix),) * 2)} to {format_sizes(encoder.grid)}"
    before_and_after = (format_sizes(each.shape[2:] if each.ndim == 4 else each.shape) for each in (theirs, value))
    return " to ".join(before_and_after) if theirs.shape != value.shape else "as timm converts it"


def adapt_stem(
    where: str,
    state: dict[str, Tensor],
    stem: str,
    shape: tuple[int, ...],
    task: Task,
    mean_std: MeanStd,
    changed: dict[str, str],
) -> None:
    """Makes the stem [D, 3, p, p] one [D, C, p, p] for the task, in `state`; reports to `changed`.

    shape: the network's.
    """
    from timm.models import adapt_input_conv  # type: ignore[attr-defined]

    kernel, bias = state.get(f"{stem}.weight"), state.get(f"{stem}.bias")
    if kernel is None or kernel.ndim != 4 or (kernel.shape[0], *kernel.shape[2:]) != (shape[0], *shape[2:]):
        return  # another network, or none: it is refused with what else differs
    if kernel.shape[1] not in (3, task.channels):
        raise UserError(
            f"{where}: its stem has {kernel.shape[1]} input channels and {task.name} has {task.channels}; "
            "use weights with 3 (red, green, blue)"
        )
    if kernel.shape[1] != 3:
        return
    changes = [changed[f"{stem}.weight"]] if f"{stem}.weight" in changed else []
    scale, shift = (each[:, None, None] for each in rescaling(task.preprocessing, *mean_std))
    if (scale != 1).any() or (shift != 0).any():
        if bias is None:
            raise UserError(f"{where}: its stem has no bias, which the task's normalisation could go into; take others")
        moved = adapt_input_conv(task.channels, (kernel.double() * shift).float()).double().sum(dim=(1, 2, 3))
        state[f"{stem}.bias"] = (bias.double() + moved).float()
        changed[f"{stem}.bias"] = "normalisation folded in"
        changes.append("normalisation folded in")
        kernel = (kernel.double() * scale).float()
    if task.channels != 3:
        changes.append(f"3 channels to {task.channels}")
        kernel = adapt_input_conv(task.channels, kernel)
    if changes:
        state[f"{stem}.weight"], changed[f"{stem}.weight"] = kernel, ", ".join(changes)


def refuse_misfits(
    where: str, theirs: dict[str, tuple[int, ...]], ours: dict[str, tuple[int, ...]], model: str, remedy: str
) -> None:
    """Raises UserError with the three tensors that differ most (by their number of values) unless all are as ours.

    model, remedy: what the file should be of, and what to do if it is of another."""
    wrong = [name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)]
    if not wrong:
        return

    def difference(name: str) -> tuple[int, str]:
        first, second = (prod(shapes[name]) if name in shapes else 0 for shapes in (theirs, ours))
        return -abs(first - second), name

    def say(name: str) -> str:
        if name not in ours:
            return f"{name} is not the network's"
        if name not in theirs:
            return f"{name} is missing"
        return f"{name} is {format_sizes(theirs[name])}, not {format_sizes(ours[name])}"

    worst = ", ".join(say(name) for name in sorted(wrong, key=difference)[:3])
    raise UserError(
        f"{where}: is not of {model}: {len(wrong)} of {len(theirs.keys() | ours.keys())} tensors differ "
        f"({worst}); {remedy}"
    )
