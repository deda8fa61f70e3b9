"""premed: does self-supervised pre-training on my own medical images help, which kind, and how sure can I be?

Read `contracts.py` first, then `training/fit.py`.
"""

__version__ = "0.1.0"
