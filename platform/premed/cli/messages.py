"""What events say, in words."""

from premed.events import DataLoadingBottleneck, WaitingForResources
from premed.training.evaluate import GATE_SHARE


def bottleneck_words(event: DataLoadingBottleneck) -> str:
    """The share of the time spent waiting for images, and the remedy."""
    waiting, loaders = f"{event.share:.0%} of the time is spent waiting for images", event.suggested_loaders
    if loaders > event.num_loaders:
        return f"{waiting}; set train.loaders={loaders} (and train.cpus={loaders + 1}, so that each has a CPU)"
    remedy = "use fewer workers per node, or put PREMED_HOME on a faster disk"
    return f"{waiting}; no CPU is left for train.loaders: {remedy}"


def resources_words(event: WaitingForResources) -> str:
    """What a stage needs, and what of it the cluster has."""
    workers, cpus = event.workers, event.cpus
    each = f"{workers} worker{'s' * (workers != 1)} of {cpus:g} CPU{'s' * (cpus != 1)}{' and a GPU' * event.gpu}"
    left = " and ".join(f"{free:g} of {event.total[name]:g} {name}s" for name, free in event.free.items())
    return f"{each}; the cluster has {left} free"


def gate_words(step: int, loss: float, gate: float) -> str:
    """The validation loss of a pre-training against its gate, in words."""
    if loss < GATE_SHARE * gate:
        result = f"past the gate by {1 - loss / gate:.0%}"
    else:
        better = f"{1 - loss / gate:.1%}" if loss < gate else "no"
        result = f"not past it yet: {better} better so far than predicting the mean patch of each position"
    return f"step {step}: validation loss {loss:.3f}, gate {gate:.3f}: {result}"
