"""Bags of visual words, with the interface of the classes that OpenCV 5 dropped.

A vocabulary is K x C float32, the centres of clusters of descriptors; an image is described by how often the
nearest centre of its descriptors is each of them (Csurka et al., "Visual categorization with bags of
keypoints", ECCV workshop 2004).
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import D2FeatError, InputError

Floats = npt.NDArray[np.float32]


class BOWKMeansTrainer:
    """Trains a vocabulary, as `cv2.BOWKMeansTrainer` does in OpenCV 4, by k-means in small batches.

    Args:
        clusterCount: K, the number of words.
        termcrit: (type, count, eps) as everywhere in OpenCV; the count limits passes over the descriptors.
        attempts: initial choices of centres of which the best is taken.
        flags: `cv2.KMEANS_PP_CENTERS` or `cv2.KMEANS_RANDOM_CENTERS`.

    Raises:
        D2FeatError: scikit-learn is not installed.
    """

    def __init__(
        self,
        clusterCount: int,
        termcrit: Sequence[float] = (),
        attempts: int = 3,
        flags: int = cv2.KMEANS_PP_CENTERS,
    ) -> None:
        try:  # here, and not after the work of all images
            import sklearn.cluster  # noqa: F401
        except ImportError as error:
            raise D2FeatError(
                f"clustering needs scikit-learn, which cannot be imported ({error}); "
                "pip install 'd2feat[bow]'"
            ) from error
        kind, count, _ = termcrit or (cv2.TERM_CRITERIA_COUNT, 100, 0.0)
        self._words, self._attempts = int(clusterCount), int(attempts)
        self._passes = int(count) if int(kind) & cv2.TERM_CRITERIA_COUNT else 100
        self._init = "k-means++" if flags == cv2.KMEANS_PP_CENTERS else "random"
        self.clear()

    def add(self, descriptors: Any) -> None:
        """Add the N x C descriptors of an image."""
        self._descriptors.append(_as_floats(descriptors, "descriptors"))

    def getDescriptors(self) -> tuple[Floats, ...]:
        """All that was added."""
        return tuple(self._descriptors)

    def descriptorsCount(self) -> int:
        """Rows that were added."""
        return sum(map(len, self._descriptors))

    def clear(self) -> None:
        """Forget what was added."""
        self._descriptors: list[Floats] = []

    def cluster(self, descriptors: Any = None) -> Floats:
        """The vocabulary of the N x C descriptors, or of all that was added: K x C float32.

        The random choices are the same at every call.

        Raises:
            InputError: there are fewer descriptors than words.
        """
        if descriptors is None and not self._descriptors:
            raise InputError("there are no descriptors to cluster: add() some first")
        values = (
            np.vstack(self._descriptors) if descriptors is None else _as_floats(descriptors, "descriptors")
        )
        if not 0 < self._words <= len(values):
            raise InputError(f"{len(values)} descriptors cannot make {self._words} words")
        from sklearn.cluster import MiniBatchKMeans

        means = MiniBatchKMeans(
            self._words, init=self._init, max_iter=self._passes, n_init=self._attempts, random_state=0
        )
        return np.asarray(means.fit(values).cluster_centers_, np.float32)


class BOWImgDescriptorExtractor:
    """Describes images by a vocabulary, as `cv2.BOWImgDescriptorExtractor` does in OpenCV 4.

    Args:
        dextractor: a `D2Feature` or another detector; only its `compute` is used.
        dmatcher: a `cv2.DescriptorMatcher`, which finds the nearest word.
    """

    def __init__(self, dextractor: Any, dmatcher: Any) -> None:
        self._extractor, self._matcher = dextractor, dmatcher
        self._vocabulary: Floats | None = None

    def setVocabulary(self, vocabulary: Any) -> None:
        """Use a K x C float32 vocabulary."""
        self._vocabulary = _as_floats(vocabulary, "vocabulary")
        self._matcher.clear()
        self._matcher.add([self._vocabulary])

    def getVocabulary(self) -> Floats | None:
        """The vocabulary."""
        return self._vocabulary

    def compute(self, image: Any, keypoints: Any, imgDescriptor: Any = None) -> Floats | None:
        """Share of the image's descriptors that belong to each word: 1 x K float32; None without keypoints.

        Raises:
            InputError: there is no vocabulary, or one of descriptors of another size.
        """
        if self._vocabulary is None:
            raise InputError("there is no vocabulary: setVocabulary() first")
        _, descriptors = self._extractor.compute(image, keypoints)
        if isinstance(descriptors, cv2.UMat):
            descriptors = descriptors.get()
        if descriptors is None:
            return None
        descriptors = _as_floats(descriptors, "descriptors")
        if descriptors.shape[1] != self._vocabulary.shape[1]:
            raise InputError(
                f"the vocabulary is of {self._vocabulary.shape[1]} elements, "
                f"descriptors have {descriptors.shape[1]}: train it with the same detector"
            )
        words = [match.trainIdx for match in self._matcher.match(descriptors)]
        counts = np.bincount(words, minlength=self.descriptorSize())
        return np.asarray(counts / len(words), np.float32)[None]

    def descriptorSize(self) -> int:
        """K, 0 without a vocabulary."""
        return 0 if self._vocabulary is None else len(self._vocabulary)

    def descriptorType(self) -> int:
        """`cv2.CV_32F`."""
        return cv2.CV_32F


def _as_floats(values: Any, name: str) -> Floats:
    if isinstance(values, cv2.UMat):
        values = values.get()
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.size == 0:
        shape = getattr(values, "shape", type(values).__name__)
        raise InputError(f"{name} must be an N x C array, not {shape}")
    floats = np.asarray(values, np.float32)
    if not np.isfinite(floats).all():
        raise InputError(f"{name} must be finite")
    return floats
