"""Import diffusers and transformers without their chatter: call `quiet()` first, wherever they are imported.

Each line is silenced where it is made, not filtered on its way out: log levels before the import, progress bars after.
A level the user set in the environment stays.
"""

import importlib
import logging
import os
from functools import cache


@cache
def quiet(*libraries: str) -> None:
    """Silence import notices, load reports and progress bars of the model libraries (by default diffusers and
    transformers), which are imported. Takes effect once per process."""
    for variable in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):
        os.environ.setdefault(variable, "error")
    # bitsandbytes comes along with diffusers and reports, at import, CPU kernels that it could have fetched from a hub.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    for name in libraries or ("diffusers", "transformers"):
        importlib.import_module(name).utils.logging.disable_progress_bar()
