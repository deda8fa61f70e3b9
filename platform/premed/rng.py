"""Every random draw as a pure function of (seed, stage, epoch, sample): nothing random is ever saved.

A *key* is a 64-bit integer (signed, as torch has no other); `fold` derives a key from a key and a name or number,
`bits` and `uniform` turn keys into numbers. The arithmetic is integer arithmetic, the same in NumPy and in torch, on
the CPU and on a GPU: the same key gives the same bits everywhere. The mixing function is SplitMix64's finaliser
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

import hashlib
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from torch import Tensor, arange, linspace

Keys = TypeVar("Keys", np.ndarray, Tensor)  # int64

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed integer


def key(*names: int | str) -> int:
    """The key that a tuple of names and numbers stands for."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def sample_keys(seed: int, stage: str, epoch: int | np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Keys [n] of the samples (their numbers [n] in the data set) in one epoch, or in one each [n], of one stage."""
    epochs, which = np.unique(np.broadcast_to(epoch, len(samples)), return_inverse=True)
    begins = np.array([key(seed, stage, int(each)) for each in epochs], np.int64)
    return fold(begins[which], np.asarray(samples, np.int64))


def fold(keys: Keys, value: "int | str | Keys") -> Keys:
    """A new key for each of `keys`, told apart by `value`: a name, a number, or one number per key."""
    if isinstance(value, str):
        value = key(value)
    with np.errstate(over="ignore"):
        return _mix(keys ^ _mix(_array(keys, value) * _GOLDEN))


def bits(keys: Keys, n: int) -> Keys:
    """`n` 64-bit draws for each key: [..., n], int64."""
    one_to_n: Any = arange(1, n + 1, device=keys.device) if isinstance(keys, Tensor) else np.arange(1, n + 1)
    with np.errstate(over="ignore"):
        return _mix(keys[..., None] + one_to_n * _GOLDEN)


def uniform(keys: Keys, n: int) -> Keys:
    """`n` draws in [0, 1) for each key: [..., n], float32, multiples of 2^-24 so that no rounding differs anywhere."""
    top = _shift(bits(keys, n), 40)
    return top.float() * 2.0**-24 if isinstance(top, Tensor) else top.astype(np.float32) * np.float32(2.0**-24)


def drop_path(keys: Tensor, rate: float, depth: int) -> Tensor:
    """Per block and key, what the block's two branches are multiplied by, so that the mean stays: [depth, 2, B, 1, 1].

    0, with a probability that grows linearly from none in the first block to `rate` in the last.
    """
    rates = linspace(0, rate, depth, device=keys.device)[:, None, None]
    draws = uniform(fold(keys, "drop path"), 2 * depth).T.reshape(depth, 2, len(keys))
    return ((draws >= rates) / (1 - rates))[..., None, None]


@lru_cache(maxsize=32)  # an epoch's order is asked for at each of its steps, and each data set has one
def permutation(of: int, n: int) -> np.ndarray:
    """The order 0..n-1 shuffled by one key: [n], int64, read-only."""
    order = np.argsort(bits(np.asarray(of, np.int64), n), kind="stable")
    order.flags.writeable = False
    return order


class SampleRng:
    """The draws of one sample: each by a name, so that adding one moves no other."""

    def __init__(self, of: int):
        self.key = np.asarray(of, np.int64)

    def uniform(self, name: str, n: int = 1, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """`n` numbers in [low, high), float32."""
        low, high = float(low), float(high)  # a NumPy number would make the result float64
        drawn = low + (high - low) * uniform(fold(self.key, name), n)
        return np.minimum(drawn, np.nextafter(np.float32(high), np.float32(low)))  # the sum may round up to `high`

    def chance(self, name: str, probability: float) -> bool:
        return bool(self.uniform(name)[0] < probability)

    def integer(self, name: str, below: int) -> int:
        """A number in 0..below-1."""
        return min(int(self.uniform(name)[0].astype(np.float64) * below), below - 1)

    def child(self, name: int | str) -> "SampleRng":
        return SampleRng(int(fold(self.key, name)))


def _mix(x: Keys) -> Keys:
    # int64 products wrap in NumPy and in torch alike, as the mixing wants; NumPy's callers silence its warning
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Keys, by: int) -> Keys:
    """Logical shift right (`>>` on signed integers would drag the sign along)."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _array(like: Keys, value):
    if isinstance(value, (Tensor, np.ndarray)):
        return value
    return like * 0 + value
