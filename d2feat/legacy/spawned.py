"""What multiprocessing imports as the main module of a process that it spawns.

Such a process begins with nothing of its parent's. `d2feat.legacy` therefore gives the program's main module
this name: here d2feat is installed as it is in the parent, and then the program is imported, as
``__mp_main__``, as multiprocessing would have done.
"""

import json
import os
import runpy
from typing import Final

VARIABLE: Final = "D2FEAT_LEGACY"
"""Environment variable with the program's path, the methods and the options, as JSON."""

if __name__ == "__mp_main__":
    from d2feat.legacy import install

    settings = json.loads(os.environ[VARIABLE])
    install(settings["replace"], **settings["options"])
    globals().update(runpy.run_path(settings["program"], run_name=__name__))
