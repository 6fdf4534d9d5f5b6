"""What the files and folders of a reconstruction are called."""

from pathlib import Path
from typing import Final

FEATURES_FILE: Final = "features.h5"
GLOBAL_FILE: Final = "global.h5"
WORDS_FILE: Final = "words.npy"
PAIRS_FILE: Final = "pairs.txt"
MATCHES_FILE: Final = "matches.h5"
DATABASE_FILE: Final = "database.db"
MODEL_FOLDER: Final = "sparse"
REFINED_FOLDER: Final = "refined"
"""The model after `tracks`, where that was asked for."""
SETTINGS_FILE: Final = "settings.json"
SOURCES_FILE: Final = "sources.json"
SIFT_FOLDER: Final = "sift"
"""A whole reconstruction in the one of D2-Net, to compare."""


def best_model(out: Path) -> Path:
    """The folder of the model in a reconstruction's: the refined one, where there is one."""
    refined = out / REFINED_FOLDER
    return refined if refined.is_dir() else out / MODEL_FOLDER
