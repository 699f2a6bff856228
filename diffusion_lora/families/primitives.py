"""Room for the compiled primitives of a CPU.

oneDNN, which computes torch's convolutions and products on a CPU, compiles one kernel for every shape it meets and
keeps the last 1024. A training step of a UNet with text encoder, forward and backward, at several ranks or buckets,
needs more: then every kernel is compiled anew in every step, which took half of one with four ranks on pocket.
"""

import os

_KERNELS = 8192  # a limit, not a size: only what is met is kept


def keep_primitives() -> None:
    """Let it keep more, unless the user set a number. Heeded until the first primitive is made in this process."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(_KERNELS))
