"""What the files and folders of a reconstruction are called."""

import hashlib
from pathlib import Path
from typing import Final

from ..images import digest

FEATURES_FILE: Final = "features.h5"
GLOBAL_FILE: Final = "global.h5"
WORDS_FILE: Final = "words.npy"
PAIRS_FILE: Final = "pairs.txt"
MATCHES_FILE: Final = "matches.h5"
DATABASE_FILE: Final = "database.db"
MODEL_FOLDER: Final = "sparse"
REFINED_FOLDER: Final = "refined"
"""The model after `tracks`, where that was asked for,"""
ORIGIN_FILE: Final = "origin.sha256"
"""and in it the `model_digest` of the model that it was made of."""
SETTINGS_FILE: Final = "settings.json"
SOURCES_FILE: Final = "sources.json"
SIFT_FOLDER: Final = "sift"
"""A whole reconstruction in the one of D2-Net, to compare."""


def model_digest(folder: Path) -> str:
    """SHA-256 of the files of a COLMAP model."""
    files = sorted(folder.glob("*.bin"))
    return hashlib.sha256("".join(f"{path.name} {digest(path)}\n" for path in files).encode()).hexdigest()


def best_model(out: Path) -> Path:
    """The folder of the model in a reconstruction's: the refined one, where it was made of the one there."""
    origin = out / REFINED_FOLDER / ORIGIN_FILE
    fresh = origin.is_file() and origin.read_text().strip() == model_digest(out / MODEL_FOLDER)
    return out / (REFINED_FOLDER if fresh else MODEL_FOLDER)
