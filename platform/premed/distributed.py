"""Which of how many processes this one is, where several train together."""

import torch.distributed as dist


def team() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
