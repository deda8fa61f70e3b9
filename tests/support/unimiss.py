"""A small UniMiSS."""

SMALL = {"hidden": 12, "bottleneck": 6, "prototypes": 10}
