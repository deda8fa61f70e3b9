"""`train.compile`: a network's blocks compiled by torch.compile, each on its own and in place, while it trains.

Names of weights, checkpoints and exports are those of the plain network. Blocks of equal shapes share what is compiled,
so that a deep network compiles as fast as a shallow one. Validation, tests and predictions compute without it: what
selects the best weights is what prediction computes, and their many sizes compile nothing.

torch._dynamo is imported where something is compiled: that takes a process some four seconds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from premed.contracts import Head
from premed.errors import UserError, first_line

Function = TypeVar("Function", bound=Callable[..., Any])

LISTS = ("blocks", "down", "up", "merge")
"""The names of lists of blocks: of transformers and ResEnc, of the U-Net, of MAE's convolutional decoder."""
HOW: dict[str, Any] = {"dynamic": False, "options": {"deterministic": True}}
"""One graph for each shape, whatever came before it, and none chosen by the clock: a resumed training is the same."""
MOST_GRAPHS = 512
"""Of a class of blocks. Beyond it torch would compute some without compiling them, which depends on their order."""
MEND = "install a C++ compiler (g++) and Python's headers, or leave it out (train.compile=false)"


def refuse_unable(device: torch.device) -> None:
    """Raises UserError where torch.compile does not work, by compiling a small function and its gradient."""
    x = torch.ones(8, device=device, requires_grad=True)
    try:
        torch.compile(lambda x: (x.sin() * x).sum(), **HOW)(x).backward()
    except Exception as error:  # no compiler, no headers, no Triton, a full disk, a Python that it does not know
        raise UserError(f"train.compile: torch.compile does not work here ({reason(error)}); {MEND}") from error


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The outermost modules that are compiled: members of lists named as in LISTS, and the parts of heads. A single
    layer gains nothing."""
    found, lists = list[nn.Module](), (nn.ModuleList, nn.Sequential, nn.ModuleDict)

    def visit(module: nn.Module, of_blocks: bool) -> None:
        for name, child in module.named_children():
            if isinstance(child, lists):
                visit(child, of_blocks or name in LISTS)
            elif of_blocks and any(child.children()):
                found.append(child)
            else:
                visit(child, isinstance(child, Head))

    visit(module, isinstance(module, Head))
    return found


@contextmanager
def compiling(objective: nn.Module, wanted: bool) -> Iterator[Callable[[Function], Function]]:
    """Within the context the objective's blocks are compiled, if that is wanted. Yields what makes a function compute
    without that: a callback, which validates.

    Raises UserError, with the mend, if something cannot be compiled.
    """
    if not wanted:
        yield lambda function: function
        return
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    blocks = blocks_of(objective)
    for block in blocks:
        block.compile(**HOW)
    try:
        with config.patch(recompile_limit=MOST_GRAPHS, accumulated_recompile_limit=MOST_GRAPHS):
            yield plainly
    except TorchDynamoException as error:
        raise UserError(f"train.compile: torch.compile failed ({reason(error)}); {MEND}") from error
    finally:
        for block in blocks:
            block._compiled_call_impl = None  # torch has no public way back


def plainly(function: Function) -> Function:
    """The function, within which nothing is compiled."""

    def uncompiled(*arguments: Any) -> Any:
        with torch.compiler.set_stance("force_eager"):
            return function(*arguments)

    return uncompiled  # type: ignore[return-value]


def reason(error: Exception) -> str:
    """Why it failed, in a line."""
    inner = getattr(error, "inner_exception", None)
    return f"{type(inner or error).__name__}: {first_line(inner or error)}"
