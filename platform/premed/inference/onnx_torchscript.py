"""Exports a network as a graph, ONNX or TorchScript, and compares its logits with torch's."""

import warnings
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from premed.contracts import Task
from premed.errors import StageFailed, UserError, first_line
from premed.models.network import Network
from premed.rng import SampleRng, key

TOLERANCE = 1e-4
"""The largest accepted difference of a graph's logits from torch's, as a share of the largest logit (of 1, if all are
smaller)."""
Graph = Callable[[np.ndarray], np.ndarray]
"""Images [B, C, *roi] float32 to logits."""


def write_onnx(network: Network, task: Task, path: Path) -> Graph:
    """Writes ONNX with one input `image` [batch, C, *roi] and one output `logits`; any batch size.

    Raises UserError for a network that torch cannot write so.
    """
    import onnxruntime

    example = torch.zeros(2, task.channels, *task.roi)  # a batch of one would fix the batch size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["image"],
                output_names=["logits"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            why = first_line(error.__cause__ or error)
            what = f"--format onnx: torch cannot write this network as ONNX ({why})"
            raise UserError(f"{what}; use --format safetensors or monai") from error
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def graph(images: np.ndarray) -> np.ndarray:
        logits = session.run(None, {"image": images})[0]
        assert isinstance(logits, np.ndarray)
        return logits

    return graph


def write_torchscript(network: Network, task: Task, path: Path) -> Graph:
    """Writes TorchScript by tracing; any batch size. It contains no pickled code."""
    example = torch.zeros(2, task.channels, *task.roi)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch recommends torch.export; MONAI's bundles require TorchScript
        torch.jit.save(torch.jit.trace(network, (example,), check_trace=False), content := BytesIO())
        path.write_bytes(content.getbuffer())  # torch's own error of a full disk is no OSError
        module = torch.jit.load(str(path), map_location="cpu")

    @torch.no_grad()
    def graph(images: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(images)).numpy()

    return graph


def random_views(task: Task) -> list[np.ndarray]:
    """Returns views [C, *roi] of random values, for use without images."""
    draws = [SampleRng(key("export", number)) for number in range(2)]
    shape = (task.channels, *task.roi)
    return [draw.uniform("view", int(np.prod(shape)), -1, 1).reshape(shape) for draw in draws]


@torch.no_grad()
def largest_difference(network: Network, graph: Graph, views: Sequence[np.ndarray], path: Path) -> dict[str, float]:
    """Compares a graph's logits with torch's over all views [C, *roi]: the first alone, the others in pairs.

    Returns the largest difference, the largest logit and the tolerance. Raises StageFailed above TOLERANCE.
    """
    difference = largest = 0.0
    batches = [views[:1], *(views[start : start + 2] for start in range(1, len(views), 2))]
    for batch in batches:
        images = np.ascontiguousarray(np.stack(batch), np.float32)
        expected = network(torch.from_numpy(images)).numpy()
        try:
            logits = graph(images)
        except Exception as error:  # each runtime has its own
            what = f"cannot be run on {len(images)} image(s) ({first_line(error)})"
            raise StageFailed(f"{path.name}: {what}; nothing is exported") from error
        if logits.shape != expected.shape:
            what = f"answers {len(images)} image(s) by {logits.shape}, and torch by {expected.shape}"
            raise StageFailed(f"{path.name}: {what}; nothing is exported")
        error = np.abs(logits - expected)
        difference = max(difference, float(error.max()) if np.isfinite(error).all() else float("inf"))
        largest = max(largest, float(np.abs(expected).max()))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise StageFailed(
            f"{path.name}: its logits differ from torch's by up to {difference:.2g} (of {largest:.2g}; "
            f"{TOLERANCE:g} of it is allowed); nothing is exported"
        )
    return {"largest_difference": difference, "largest_logit": largest, "tolerance": TOLERANCE}
