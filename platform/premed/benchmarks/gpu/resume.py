"""Row resume: a training that goes on from a checkpoint ends with the weights of one that was never stopped."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from premed.benchmarks import steps
from premed.benchmarks.floors import joined, relative_error
from premed.benchmarks.gpu.context import Context
from premed.benchmarks.gpu.trainings import PRECISIONS, STEPS, InMemory, Training, small, train
from premed.contracts import Objective
from premed.errors import first_line
from premed.training.checkpoint import CheckpointManager
from premed.training.optimizer import make_optimizer
from premed.training.storage import StageStorage

PRECISION = torch.bfloat16


def resume(context: Context) -> None:
    """With the algorithms that premed uses, and, where these are not exact, with deterministic ones."""
    for training in small():
        of = f"{training.name}, {PRECISIONS[PRECISION]}"
        with context.guarded(of):
            compare(context, training, of)


def compare(context: Context, training: Training, of: str) -> None:
    """A line of one network."""
    about = f"{STEPS} steps, resumed after {STEPS // 2}: "
    whole, resumed = undisturbed(training, context.device), interrupted(training, context.device)
    if same(whole, resumed):
        context.line(of, "passed", f"{about}the same weights, bit for bit")
        return
    off = relative_error(*(joined(each.values()) for each in (whole, resumed)))
    if same(whole, undisturbed(training, context.device)):
        found = f"{about}weights apart by {off:.1e}, though two runs without a stop are the same"
        context.line(of, "failed", found, apart=off)
        return

    def exact() -> bool:
        return same(undisturbed(training, context.device), interrupted(training, context.device))

    how = "with deterministic algorithms"
    try:
        with deterministic():
            found = exact()
    except RuntimeError as error:
        how += f" where there is one ({no_algorithm(error)}), and attention by products,"
        with deterministic(warn_only=True), sdpa_kernel(SDPBackend.MATH):
            found = exact()
    context.line(
        of,
        "passed" if found else "failed",
        f"{about}weights apart by {off:.1e}, as those of two runs without a stop are; {how} "
        f"{'the same, bit for bit' if found else 'they differ, too'}",
        apart=off,
    )


def no_algorithm(error: RuntimeError) -> str:
    """What torch says of an operation that has no deterministic algorithm. Raises any other error again."""
    text = first_line(error)
    if "deterministic" not in text:
        raise error
    return text.partition(", but you set")[0]


def undisturbed(training: Training, device: torch.device) -> dict[str, Tensor]:
    """The weights after all steps."""
    objective = training.build(device)
    train(objective, InMemory(training, 4 * training.batch, device), training.batch, precision=PRECISION)
    return objective.state_dict()


def interrupted(training: Training, device: torch.device) -> dict[str, Tensor]:
    """The weights after the same steps by two processes' worth of objects, with a checkpoint on disk between them."""
    source, half = InMemory(training, 4 * training.batch, device), STEPS // 2
    with TemporaryDirectory() as folder:
        checkpoints = CheckpointManager(StageStorage(str(Path(folder)), "stage"))
        first = training.build(device)
        optimizer = make_optimizer(first, steps.BETAS)
        train(first, source, training.batch, stop=half, optimizer=optimizer, precision=PRECISION)
        checkpoints.save(half, first, optimizer, {})
        second: Objective = training.build(device)
        optimizer = make_optimizer(second, steps.BETAS)
        restored = checkpoints.restore(second, optimizer)
        assert restored is not None and restored.step == half
        train(second, source, training.batch, start=half, optimizer=optimizer, precision=PRECISION)
    return second.state_dict()


def same(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    """Whether all are equal, bit for bit."""
    return all(torch.equal(weights[name], others[name]) for name in weights | others)


@contextmanager
def deterministic(warn_only: bool = False) -> Iterator[None]:
    """A context of torch's deterministic algorithms; an operation that has none raises RuntimeError.

    With `warn_only` it is executed, and fused attention's gradients are inexact, too. cuBLAS needs
    CUBLAS_WORKSPACE_CONFIG, which `run.settle` sets before anything is computed.
    """
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
