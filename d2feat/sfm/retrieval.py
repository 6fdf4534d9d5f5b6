"""Which photos show the same place: a global descriptor of each, and a preview of each likely pair's matches.

VLAD (Jegou et al., CVPR 2010): each local descriptor leaves its difference to the nearest of a few visual
words in that word's sum; sums are normalised each (Arandjelovic & Zisserman, CVPR 2013) and all together. The
words are learned on the photos at hand, so this fits any model, needs no file of its own, and takes nothing
from the network but what it already gave: a few milliseconds a photo. Likely pairs are previewed by matching
a few of the best features (preemptive matching: Wu, 3DV 2013), which tells more than any global descriptor.
"""

from collections.abc import Iterable
from typing import Any, Final

import cv2
import numpy as np

from ..features import Floats
from ..matching import match_indices

WORDS: Final = 32
SAMPLED: Final = 12
"""Photos, spread over all, that the words are learned on."""
SAMPLES: Final = 400
"""Local descriptors of each of these, its best."""
PREVIEWED: Final = 400
"""Descriptors of a photo, its best, that a preview matches: a few milliseconds a pair."""


def learn_words(samples: Floats) -> Floats:
    """`WORDS` x C visual words (fewer if there are fewer samples) of N x C descriptors."""
    count = min(WORDS, len(samples))
    cv2.setRNGSeed(0)
    criteria = cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 20, 1e-4
    _, _, words = cv2.kmeans(samples, count, None, criteria, 1, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    return np.asarray(words, np.float32)


def global_descriptor(descriptors: Floats, words: Floats) -> Floats:
    """K * C float32 of unit length (all 0 of a photo without features): VLAD of N x C over K x C words."""
    nearest = (descriptors @ words.T - 0.5 * (words * words).sum(1)).argmax(1)
    own = (nearest[:, None] == np.arange(len(words))).astype(np.float32)
    sums = own.T @ descriptors - own.sum(0)[:, None] * words
    sums /= np.linalg.norm(sums, axis=1, keepdims=True).clip(min=1e-9)
    flat = sums.reshape(-1)
    return np.asarray(flat / max(float(np.linalg.norm(flat)), 1e-9), np.float32)


def preview(one: Floats, two: Floats) -> int:
    """How many of the best of N x C and M x C descriptors match: mutual and by Lowe's ratio of 0.8."""
    return len(match_indices(one[:PREVIEWED], two[:PREVIEWED], ratio=0.8)[0])


def nearest_photos(queries: Floats, references: Floats, count: int) -> Any:
    """M x min(count, N) indices of the nearest of N x D `references` for each of M x D `queries`, best first.

    Exact: a matrix product, or faiss where it is installed.
    """
    count = min(count, len(references))
    try:
        import faiss
    except ImportError:
        similarity = queries @ references.T
        return np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    index = faiss.IndexFlatIP(references.shape[1])
    index.add(references)
    return index.search(queries, count)[1]


def recall(pairs: Iterable[tuple[str, str]], verified: Iterable[tuple[str, str]]) -> float:
    """Share of the verified pairs that are among `pairs`, whichever way round."""
    wanted = {frozenset(pair) for pair in verified}
    return len(wanted & {frozenset(pair) for pair in pairs}) / max(1, len(wanted))
