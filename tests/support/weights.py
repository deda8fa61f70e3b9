"""Weights of trainings that summed in another order, compared."""

import numpy as np


def learnt(name, values):
    """What of a tensor was learnt. A bias of attention's keys changes nothing and has no gradient but rounding, on
    which AdamW walks about: these, the middle third of `qkv.bias`, are left out."""
    values = np.asarray(values)
    return np.delete(values, np.s_[len(values) // 3 : -(len(values) // 3)]) if name.endswith("qkv.bias") else values
