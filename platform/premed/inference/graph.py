"""A network as a graph that others run without premed: ONNX, TorchScript; and how far its answers are from torch's."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from premed.contracts import Task
from premed.errors import StageFailed
from premed.models.network import Network
from premed.rng import SampleRng, key

TOLERANCE = 1e-4
"""The largest difference of a logit from torch's at which a graph is handed over, as a share of the largest logit (of
1, where all are smaller)."""
Graph = Callable[[np.ndarray], np.ndarray]
"""Images [B, C, *roi] float32 to logits."""


def write_onnx(network: Network, task: Task, path: Path) -> Graph:
    """ONNX with one input `image` [batch, C, *roi] and one output `logits`; any batch size."""
    import onnxruntime

    example = torch.zeros(2, task.channels, *task.roi)  # one image would nail the batch size to one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def graph(images: np.ndarray) -> np.ndarray:
        logits = session.run(None, {"image": images})[0]
        assert isinstance(logits, np.ndarray)
        return logits

    return graph


def write_torchscript(network: Network, task: Task, path: Path) -> Graph:
    """TorchScript by tracing; any batch size. It holds no pickled code."""
    example = torch.zeros(2, task.channels, *task.roi)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch would rather have torch.export; MONAI's bundles are TorchScript
        torch.jit.save(torch.jit.trace(network, (example,), check_trace=False), str(path))
        read = torch.jit.load(str(path), map_location="cpu")

    @torch.no_grad()
    def graph(images: np.ndarray) -> np.ndarray:
        return read(torch.from_numpy(images)).numpy()

    return graph


def random_views(task: Task) -> list[np.ndarray]:
    """Views of nothing, where no image is at hand."""
    draws = [SampleRng(key("export", number)) for number in range(2)]
    shape = (task.channels, *task.roi)
    return [draw.uniform("view", int(np.prod(shape)), -1, 1).reshape(shape) for draw in draws]


@torch.no_grad()
def largest_difference(network: Network, graph: Graph, views: Sequence[np.ndarray], path: Path) -> dict[str, float]:
    """Of a graph's logits from torch's, over all views [C, *roi]: the first alone, the others in pairs.

    Raises StageFailed where it is more than TOLERANCE allows.
    """
    difference = largest = 0.0
    batches = [views[:1], *(views[start : start + 2] for start in range(1, len(views), 2))]
    for batch in batches:
        images = np.ascontiguousarray(np.stack(batch), np.float32)
        expected = network(torch.from_numpy(images)).numpy()
        apart = np.abs(graph(images) - expected)
        difference = max(difference, float(apart.max()) if np.isfinite(apart).all() else float("inf"))
        largest = max(largest, float(np.abs(expected).max()))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise StageFailed(
            f"{path.name}: its logits differ from torch's by up to {difference:.2g} (of {largest:.2g}; "
            f"{TOLERANCE:g} of it is allowed); it is not handed over"
        )
    return {"largest_difference": difference, "largest_logit": largest, "tolerance": TOLERANCE}
