"""How well features match on image sequences whose homographies are known: ``d2feat eval``.

The folder reads in this order: `metrics` (the figures, as functions of arrays), `methods` (what is compared),
`fitting` (homographies), `legacy` (the FLANN, ratio and RANSAC recipe of old scripts), `sequences` (image
sequences and their evaluation), `synthetic` (sequences with exact truth made of photographs), `report`
(table, JSON, picture), `pose` (relative poses on pairs), `cli`. Importing it imports no more than d2feat
does; `report` and `cli` are imported by those who use them.
"""

from .methods import Method, open_methods
from .sequences import Evaluation, ImageSequence, evaluate, read_sequences
from .synthetic import make_sequences

__all__ = [
    "Evaluation",
    "ImageSequence",
    "Method",
    "evaluate",
    "make_sequences",
    "open_methods",
    "read_sequences",
]
