"""Random numbers as pure functions of (seed, stage, epoch, sample): no generator state is ever saved.

A *key* is a 64-bit integer (signed, because torch has no unsigned one); `fold` derives a key from a key and a name or
number, `bits` and `uniform` turn keys into numbers. All arithmetic is on integers, the same in NumPy and in torch, on
CPU and GPU: the same key gives the same bits everywhere. The mixing function is SplitMix64's finaliser
(Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
"""

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:  # torch takes seconds to import, and what compares runs draws numbers without it
    from torch import Tensor

Keys = TypeVar("Keys", np.ndarray, "Tensor")  # int64

_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed integer
_ALL = 2**64 - 1  # the bits of a key, of Python's integers, which do not wrap


def key(*names: int | str) -> int:
    """Hashes a tuple of names and numbers to a key."""
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def sample_keys(seed: int, stage: str, epoch: int | np.ndarray, samples: np.ndarray) -> np.ndarray:
    """The keys [n] of samples, from their indices [n] in the data set and the epoch: one for all, or one each [n]."""
    epochs, which = np.unique(np.broadcast_to(epoch, len(samples)), return_inverse=True)
    begins = np.array([key(seed, stage, int(each)) for each in epochs], np.int64)
    return fold(begins[which], np.asarray(samples, np.int64))


def fold(keys: Keys, value: "int | str | Keys") -> Keys:
    """Derives a new key from each of `keys` and `value`: a name, a number, or one number per key."""
    if isinstance(value, str):
        value = key(value)
    with np.errstate(over="ignore"):
        return _mix(keys ^ _mix(_array(keys, value) * _GOLDEN))


def bits(keys: Keys, n: int) -> Keys:
    """`n` random 64-bit integers for each key: [..., n], int64."""
    one_to_n: Any = np.arange(1, n + 1)
    if not _is_numpy(keys):
        import torch

        one_to_n = torch.arange(1, n + 1, device=keys.device)
    with np.errstate(over="ignore"):
        return _mix(keys[..., None] + one_to_n * _GOLDEN)


def uniform(keys: Keys, n: int) -> Keys:
    """`n` uniform numbers in [0, 1) for each key: [..., n], float32, multiples of 2^-24, so that all devices agree."""
    top: Any = _shift(bits(keys, n), 40)
    return top.astype(np.float32) * np.float32(2.0**-24) if _is_numpy(top) else top.float() * 2.0**-24


def drop_path(keys: "Tensor", rate: float, depth: int) -> "Tensor":
    """Drop path: the factors of each block's two residual branches, [depth, 2, B, 1, 1], with mean 1.

    A factor is 0 with a probability that grows linearly from 0 in the first block to `rate` in the last.
    """
    import torch

    rates = torch.linspace(0, rate, depth, device=keys.device)[:, None, None]
    draws = uniform(fold(keys, "drop path"), 2 * depth).T.reshape(depth, 2, len(keys))
    return ((draws >= rates) / (1 - rates))[..., None, None]


@lru_cache(maxsize=32)  # each step needs its epoch's order, of each data set
def permutation(of: int, n: int) -> np.ndarray:
    """The numbers 0..n-1, shuffled by one key: [n], int64, read-only."""
    order = np.argsort(bits(np.asarray(of, np.int64), n), kind="stable")
    order.flags.writeable = False
    return order


class SampleRng:
    """The random numbers of one sample, each drawn by name, so that a new draw changes no other.

    They are those of `fold` and `uniform`, computed with Python's integers: NumPy takes ten times as long for a single
    number, and a view draws some twenty.
    """

    def __init__(self, of: int):
        self.key = int(of)

    def uniform(self, name: str, n: int = 1, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        """`n` numbers in [low, high), float32."""
        low, high = float(low), float(high)  # a NumPy number would make the result float64
        drawn = low + (high - low) * np.array(self._draws(name, n), np.float32)
        return np.minimum(drawn, np.nextafter(np.float32(high), np.float32(low)))  # the sum may round up to `high`

    def chance(self, name: str, probability: float) -> bool:
        """True with the given probability."""
        return bool(np.float32(self._draws(name, 1)[0]) < probability)

    def integer(self, name: str, below: int) -> int:
        """A uniform integer in 0..below-1."""
        return min(int(self._draws(name, 1)[0] * below), below - 1)

    def child(self, name: int | str) -> "SampleRng":
        """A generator with draws of its own."""
        return SampleRng(_signed(_mix_one(self.key & _ALL ^ _fold_one(name))))

    def _draws(self, name: str, n: int) -> list[float]:
        """`n` numbers in [0, 1), multiples of 2^-24."""
        of = _mix_one(self.key & _ALL ^ _fold_one(name))
        if n > 50:
            return uniform(np.asarray(_signed(of), np.int64), n).tolist()
        return [(_mix_one(of + i * _GOLDEN & _ALL) >> 40) * 2.0**-24 for i in range(1, n + 1)]


def _mix_one(x: int) -> int:
    """`_mix` of one number, which is unsigned, as the result is."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _ALL
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _ALL
    return x ^ x >> 31


@lru_cache(maxsize=4096)  # names are few
def _fold_one(value: int | str) -> int:
    """What `fold` changes a key by, unsigned."""
    return _mix_one((key(value) if isinstance(value, str) else int(value)) * _GOLDEN & _ALL)


def _signed(x: int) -> int:
    return x - (x >> 63 << 64)


def _mix(x: Keys) -> Keys:
    # int64 products must wrap, and do in NumPy and torch; callers silence NumPy's overflow warning
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Keys, by: int) -> Keys:
    """Logical shift right (`>>` on signed integers copies the sign bit)."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def _array(like: Any, value: Any) -> Any:
    return like * 0 + value if isinstance(value, int | np.generic) else value


def _is_numpy(keys: Any) -> bool:
    return isinstance(keys, np.ndarray | np.generic)
