"""`D2Feature`: D2-Net behind the interface of `cv2.Feature2D`."""

import contextlib
import copy
import functools
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from .bindings import (
    Feature2DObject,
    copied,
    cv2_call,
    deliver,
    new_object,
    opened_storage,
    paired,
    real,
    size_of,
    whole,
)
from .errors import InputError
from .features import Features, Floats
from .images import Image, allowed_at, as_image, as_mask
from .keypoints import describable, read_keypoints
from .model import DEFAULT, is_path
from .providers import Provider
from .rotations import pool_rotations
from .session import Session, open_session
from .stream import Extraction, stream
from .tiles import LONGEST, best_of, describe_tiled, extract_tiled, margin, smallest_tile

MULTISCALE: Final = (0.25, 0.35, 0.5, 0.71, 1.0)
"""Our models' default pyramid: half octaves down to a quarter of the image, at twice the cost of one level.

The authors' checkpoints, whose levels are summed, have one level by default; the paper's pyramid for them is
(0.5, 1.0, 2.0).
"""

SETTINGS: Final = ("nfeatures", "scoreThreshold", "scales", "maxEdge", "maxSumEdges", "tile", "rotations")
"""Arguments of `create` that an image's features depend on, beside the model."""

KeyPoints = tuple[cv2.KeyPoint, ...]


class D2Feature(Feature2DObject):
    """D2-Net (Dusmanu et al., CVPR 2019) with the methods, arguments and results of `cv2.SIFT`.

    Made by `d2feat.create`, which documents the parameters. May be used from several threads at once, be
    copied and pickled. `isinstance(x, cv2.Feature2D)` holds, but OpenCV's C++ functions cannot take it: they
    raise TypeError.
    """

    def __init__(
        self,
        nfeatures: int | None = 0,
        *,
        scoreThreshold: float = 0.0,
        scales: Sequence[float] | None = None,
        maxEdge: int = 1600,
        maxSumEdges: int = 2800,
        model: str | os.PathLike[str] = DEFAULT,
        provider: Provider = "auto",
        threads: int = 0,
        tile: int = 0,
        rotations: int = 1,
    ) -> None:
        self._model = os.fspath(model) if isinstance(model, os.PathLike) else model
        if isinstance(self._model, str) and is_path(self._model):
            self._model = str(Path(self._model).absolute())  # the program may change its folder
        self._provider, self._threads = provider, whole(threads, "threads")
        self._tile = 0
        self.setNFeatures(0 if nfeatures is None else nfeatures)
        self.setScoreThreshold(scoreThreshold)
        self.setScales(self._default_scales() if scales is None else scales)
        self.setMaxEdge(maxEdge)
        self.setMaxSumEdges(maxSumEdges)
        self.setTile(tile)
        self.setRotations(rotations)
        self._session  # noqa: B018  (a model that cannot be loaded is an error here, not at the first image)

    @staticmethod
    def create(*args: Any, **kwargs: Any) -> "D2Feature":
        """`d2feat.create`, where `cv2.SIFT.create` was written."""
        return create(*args, **kwargs)

    def _default_scales(self) -> Sequence[float]:
        return (1.0,) if self._session.info.head == "paper" else MULTISCALE

    @property
    def _session(self) -> Session:
        # It stays loaded, whatever becomes of the file; but not in a forked child, where it is of no use.
        held: Session | None = self.__dict__.get("_held")
        if held is None or held.process != os.getpid():
            held = self._held = open_session(self._model, self._provider, self._threads)
        return held

    # ---- detection and description

    @cv2_call
    def detectAndCompute(
        self,
        image: Any,
        mask: Any = None,
        descriptors: Any = None,
        useProvidedKeypoints: bool = False,
    ) -> tuple[KeyPoints, Any]:
        """Detect keypoints and compute their descriptors.

        Args:
            image: uint8 array or `cv2.UMat`: H x W (grey) or H x W x C (1 grey, 2 grey and alpha, 3 BGR,
                4 BGRA); any size, any strides.
            mask: H x W uint8 or bool, non-zero where keypoints may lie; None or empty for everywhere.
            descriptors: array to write into, if it is float32, contiguous and of the right shape.
            useProvidedKeypoints: as in OpenCV's Python interface, no keypoints can be provided here, so
                True gives none; `compute` describes given keypoints.

        Returns:
            Tuple of N `cv2.KeyPoint`, best first, and N x C float32 descriptors of unit length;
            ``((), None)`` if there are none. For a UMat the descriptors are a UMat, empty if there are none.

        Raises:
            InputError: an argument is unusable.
        """
        if isinstance(image, (list, tuple)):
            raise InputError("detectAndCompute takes one image; for several there is detectAndComputeBatch")
        if useProvidedKeypoints:
            as_image(image)
            return (), deliver(None, descriptors, image)
        keypoints, found = self.extract(image, mask).to_opencv()
        return keypoints, deliver(found, descriptors, image)

    @cv2_call
    def detectAndComputeBatch(
        self, images: Any, masks: Any = None
    ) -> tuple[tuple[KeyPoints, ...], tuple[Any, ...]]:
        """`detectAndCompute` of several images: tuple of tuples of keypoints, tuple of descriptors.

        The network takes them one by one; for images of one size on a GPU see `d2feat.create_frames`.

        Args:
            images: sequence of images, or of paths of files.
            masks: sequence of as many masks, or None.

        Raises:
            InputError: an argument is unusable; the message says which image.
        """
        with self._stream_list(images, masks) as extractions:
            found = [(one.keypoints, deliver(one.descriptors, None, one.source)) for one in extractions]
        return tuple(keypoints for keypoints, _ in found), tuple(descriptors for _, descriptors in found)

    @cv2_call
    def stream(self, images: Iterable[Any], masks: Iterable[Any] | None = None) -> Iterator[Extraction]:
        """Extract many images, in order: files are decoded ahead and KeyPoints built while the network runs.

        Args:
            images: paths of files, or images as for `detectAndCompute`. They are taken as they are needed, a
                few ahead, so that a generator without an end will do.
            masks: as many masks, or None.

        Yields:
            An `Extraction` an image, with `keypoints` and `descriptors`, or `features`, and its `index` and
            `source`. An image that cannot be used does not end the stream: its `error` says why, and its
            `features` raise it. To stop early, leave the loop.

        Example:
            >>> for found in d2.stream(["a.jpg", "b.jpg"]):   # doctest: +SKIP
            ...     if found.error is None:
            ...         print(found.name, len(found.keypoints))
        """
        return stream(self.extract, images, masks)

    @cv2_call
    def detect(self, image: Any, mask: Any = None) -> Any:
        """Detect keypoints: a tuple of `cv2.KeyPoint`, or of such tuples for a list of images (and masks)."""
        if isinstance(image, (list, tuple)):
            with self._stream_list(image, mask) as extractions:
                return tuple(one.features.to_keypoints() for one in extractions)
        return self.extract(image, mask).to_keypoints()

    def _stream_list(self, images: Any, masks: Any) -> contextlib.closing[Generator[Extraction]]:
        """A list's images one by one; what is under way is stopped where one raises an error."""
        pairs = list(paired(images, masks, "masks"))
        return contextlib.closing(
            stream(self.extract, [image for image, _ in pairs], [mask for _, mask in pairs])
        )

    @cv2_call
    def compute(self, image: Any, keypoints: Any, descriptors: Any = None) -> tuple[Any, Any]:
        """Describe given keypoints: the dense map is interpolated where they are.

        With several scales each keypoint is described at the level nearest to its scale, ``size`` / 32, so
        that ``compute(image, detect(image))`` gives what `detectAndCompute` does.

        Args:
            image: as for `detectAndCompute`, or a list of images.
            keypoints: sequence of `cv2.KeyPoint`, or a list of such sequences.
            descriptors: as for `detectAndCompute`.

        Returns:
            The keypoints that could be described, in order, as new objects, and their N x C descriptors.
            Keypoints outside the image, not finite or without a positive size are dropped, as
            `cv2.Feature2D.compute` documents. ``((), None)`` if none is left.
        """
        if isinstance(image, (list, tuple)):
            pairs = []
            for index, (one, other) in enumerate(paired(image, keypoints, "keypoints")):
                try:
                    pairs.append(self.compute(one, other))
                except InputError as error:
                    raise InputError(f"image {index}: {error}") from None
            return tuple(kept for kept, _ in pairs), tuple(found for _, found in pairs)
        pixels = as_image(image)
        keypoints = (
            () if keypoints is None else tuple(keypoints) if isinstance(keypoints, Iterable) else keypoints
        )
        points = read_keypoints(keypoints)
        kept = describable(points, (pixels.shape[1], pixels.shape[0]))
        if len(kept) == 0:
            return (), deliver(None, descriptors, image)
        found = self.describe(pixels, points[kept])
        return tuple(copied(keypoints[i]) for i in kept), deliver(found, descriptors, image)

    def warmup(self, sizes: Iterable[tuple[int, int]] = ((640, 480),)) -> None:
        """Run once on an image of each (width, height), so that the first real one does not pay for it.

        On the CPU it is memory that is fetched; CUDA chooses algorithms for every new size; TensorRT builds
        its engine, which takes minutes, for the range of all sizes, and caches it.

        Raises:
            InputError: these are no sizes.
        """
        rng = np.random.default_rng(0)
        for width, height in [size_of(size) for size in sizes]:
            self.extract(rng.integers(0, 256, (height, width, 3), np.uint8))

    # ---- arrays instead of objects

    def extract(self, image: Any, mask: Any = None) -> Features:
        """Keypoints and descriptors as arrays, best first; arguments as for `detectAndCompute`."""
        pixels = as_image(image)
        height, width = pixels.shape[:2]
        allowed = as_mask(mask, (height, width))
        if 0 < self._tile < max(height, width):
            parts = [level._extract_tiled(pixels, allowed) for level in self._levels()]
            return best_of(parts, self._nfeatures)
        return self._extract(pixels, allowed, self._nfeatures)

    def _levels(self) -> list["D2Feature"]:
        """Detectors of what is tiled together, their tiles in pixels of the image.

        The fine head's levels know nothing of each other, so that each is tiled by itself.
        """
        if self._session.info.head == "paper":
            return [self]
        levels = []
        for scale in self._scales.tolist():
            level = copy.copy(self)
            level._scales, level._tile = np.array([scale]), int(min(self._tile / scale, LONGEST))
            levels.append(level)
        return levels

    def _extract_tiled(self, pixels: Image, allowed: npt.NDArray[np.bool_] | None) -> Features:
        extract = functools.partial(self._extract, nfeatures=0)
        return extract_tiled(extract, pixels, allowed, self._tile, margin(self._scales), self._nfeatures)

    def _extract(self, pixels: Image, allowed: npt.NDArray[np.bool_] | None, nfeatures: int) -> Features:
        """`extract` of an image that goes through the network in one piece."""
        height, width = pixels.shape[:2]
        threshold = self._score_threshold
        resized = self._resized(pixels)
        limit = nfeatures if allowed is None and nfeatures > 0 else -1
        outputs = self._session.run(resized, self._scales, limit)
        keypoints = self._to_image(outputs.keypoints, resized, pixels)
        factor = np.float32(np.sqrt(width * height / (resized.shape[0] * resized.shape[1])))
        points = np.column_stack([outputs.keypoints, outputs.scales])
        descriptors, angles = self._pooled(resized, points, outputs.descriptors)
        scales = outputs.scales * factor
        features = Features(keypoints, outputs.scores, scales, descriptors, (width, height), angles)
        if allowed is not None and len(features):
            features = features[allowed_at(allowed, keypoints)]
        if threshold > 0:
            features = features[features.scores > threshold]
        # Not a slice, which would keep all descriptors alive.
        return features[np.arange(nfeatures)] if 0 < nfeatures < len(features) else features

    def describe(self, image: Any, points: npt.ArrayLike) -> Floats:
        """M x C descriptors at M x 3 points, (x, y, scale) in pixels of the image.

        Points outside of the image are described at its border.
        """
        pixels = as_image(image)
        try:
            with np.errstate(over="ignore"):  # infinite then, which is refused below
                values = np.array(points, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(f"points must be M x 3 numbers ({error})") from None
        if values.size and (values.ndim != 2 or values.shape[1] != 3):
            raise InputError(f"points must be M x 3, (x, y, scale), not of shape {values.shape}")
        values = values.reshape(-1, 3)
        if not np.isfinite(values).all() or not (values[:, 2] > 0).all():
            raise InputError("points must be finite and their scales positive")
        if not 0 < self._tile < max(pixels.shape[:2]):
            return self._describe(pixels, values)
        descriptors = np.empty((len(values), self.descriptorSize()), np.float32)
        levels = self._levels()
        nearest = np.zeros(len(values), np.int64)
        if len(levels) > 1:
            nearest = np.abs(np.log(values[:, 2:] * self._scales)).argmin(1)
        for index, level in enumerate(levels):
            mine = np.flatnonzero(nearest == index)
            border = margin(level._scales)
            descriptors[mine] = describe_tiled(level._describe, pixels, values[mine], level._tile, border)
        return descriptors

    def _describe(self, pixels: Image, values: Floats) -> Floats:
        """`describe` in an image that goes through the network in one piece."""
        resized, values = self._resized(pixels), values.copy()
        values[:, :2] = self._to_image(values[:, :2], pixels, resized)
        values[:, 2] *= np.sqrt(resized.shape[0] * resized.shape[1] / (pixels.shape[0] * pixels.shape[1]))
        return self._pooled(resized, values, self._described(resized, values))[0]

    def _described(self, pixels: Image, points: Floats) -> Floats:
        return self._session.run(pixels, self._scales, 0, points).point_descriptors

    def _pooled(self, pixels: Image, points: Floats, upright: Floats) -> tuple[Floats, Floats | None]:
        """Descriptors of M x 3 points made independent of rotation, and angles, if that is wanted."""
        if self._rotations == 1:
            return upright, None
        if len(points) == 0:
            return upright, np.zeros(0, np.float32)
        return pool_rotations(self._described, pixels, points, upright, self._rotations)

    def _resized(self, image: Image) -> Image:
        """The image, made smaller if its longer edge or the sum of its edges is above the limits."""
        if self._tile > 0:
            return image
        height, width = image.shape[:2]
        factor = 1.0
        if 0 < self._max_edge < max(height, width):
            factor = self._max_edge / max(height, width)
        if 0 < self._max_sum_edges < factor * (height + width):
            factor = self._max_sum_edges / (height + width)
        if factor == 1.0:
            return image
        size = max(1, int(width * factor)), max(1, int(height * factor))
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]

    def _to_image(self, positions: Floats, source: Image, target: Image) -> Floats:
        """Positions in pixels of `source` to pixels of `target`, the same picture resized."""
        if source.shape == target.shape:
            return positions
        factor: Floats = np.divide(target.shape[1::-1], source.shape[1::-1], dtype=np.float32)
        if self._session.info.coordinates == "upstream":
            return positions * factor
        return (positions + np.float32(0.5)) * factor - np.float32(0.5)

    # ---- parameters

    @cv2_call
    def setNFeatures(self, maxFeatures: int) -> None:
        """Keep at most so many features, those with the highest response; 0 or less keeps all."""
        self._nfeatures = whole(maxFeatures, "nfeatures")

    def getNFeatures(self) -> int:
        """Largest number of features; 0 or less means all."""
        return self._nfeatures

    # ORB and GFTT call it so.
    setMaxFeatures = setNFeatures
    getMaxFeatures = getNFeatures

    @cv2_call
    def setScoreThreshold(self, threshold: float) -> None:
        """Keep features whose response is above this."""
        self._score_threshold = real(threshold, "scoreThreshold")

    def getScoreThreshold(self) -> float:
        """Response above which features are kept."""
        return self._score_threshold

    @cv2_call
    def setScales(self, scales: Sequence[float]) -> None:
        """Sizes of the pyramid's levels relative to the image, in any order, such as `MULTISCALE`."""
        try:
            values = np.unique(np.asarray(scales, np.float64).reshape(-1))
        except (TypeError, ValueError):
            raise InputError(f"scales must be numbers, not {scales!r}") from None
        if len(values) == 0 or not np.isfinite(values).all() or values[0] <= 0:
            raise InputError(f"scales must be one or more positive numbers, not {scales!r}")
        self._check_tile(self._tile, values)
        self._scales = values

    def getScales(self) -> tuple[float, ...]:
        """Sizes of the pyramid's levels relative to the image."""
        return tuple(self._scales.tolist())

    @cv2_call
    def setMaxEdge(self, pixels: int) -> None:
        """Images whose longer edge is above this are made smaller first; 0 or less for no limit."""
        self._max_edge = whole(pixels, "maxEdge")

    def getMaxEdge(self) -> int:
        """Largest longer edge in pixels."""
        return self._max_edge

    @cv2_call
    def setMaxSumEdges(self, pixels: int) -> None:
        """Images whose width plus height is above this are made smaller first; 0 or less for no limit."""
        self._max_sum_edges = whole(pixels, "maxSumEdges")

    def getMaxSumEdges(self) -> int:
        """Largest sum of width and height in pixels."""
        return self._max_sum_edges

    @cv2_call
    def setTile(self, pixels: int) -> None:
        """Edge of the tiles in which larger images are extracted; 0 or less for none."""
        tile = whole(pixels, "tile")
        self._check_tile(tile, self._scales)
        self._tile = tile

    def getTile(self) -> int:
        """Edge of the tiles in pixels; 0 or less for none."""
        return self._tile

    def _check_tile(self, tile: int, scales: npt.NDArray[np.float64]) -> None:
        if tile <= 0:
            return
        smallest = smallest_tile(scales, one_by_one=self._session.info.head != "paper")
        if tile < smallest:
            raise InputError(f"tile must be 0 or at least {smallest} at scales {scales.tolist()}, not {tile}")

    @cv2_call
    def setRotations(self, count: int) -> None:
        """Number of evenly spaced rotations over which descriptors are pooled; 1 leaves them upright."""
        rotations = whole(count, "rotations")
        if not 1 <= rotations <= 360:
            raise InputError(f"rotations must be from 1 to 360, not {count}")
        if rotations > 1 and self._session.info.coordinates == "upstream":
            raise InputError(
                "rotations need a model whose keypoints sit where the image says; export this one with "
                "--coordinates opencv"
            )
        self._rotations = rotations

    def getRotations(self) -> int:
        """Number of rotations over which descriptors are pooled."""
        return self._rotations

    # ---- what cv2.Feature2D says of itself

    def descriptorSize(self) -> int:
        """Elements of a descriptor."""
        return self._session.info.channels

    def descriptorType(self) -> int:
        """`cv2.CV_32F`."""
        return cv2.CV_32F

    def defaultNorm(self) -> int:
        """`cv2.NORM_L2`."""
        return cv2.NORM_L2

    def empty(self) -> bool:
        """False: there is a model."""
        return False

    def clear(self) -> None:
        """Nothing to clear, as with `cv2.SIFT`."""

    def getDefaultName(self) -> str:
        """Name under which OpenCV's classes would file it."""
        return "Feature2D.D2Feature"

    # ---- persistence

    @cv2_call
    def write(self, fs: Any, name: str | None = None) -> None:
        """Write the parameters to a `cv2.FileStorage` (under `name`, if given) or to a new file at a path."""
        if isinstance(fs, (str, os.PathLike)):
            with opened_storage(fs, cv2.FILE_STORAGE_WRITE) as storage:
                self.write(storage)
            return
        if not isinstance(fs, cv2.FileStorage):
            raise InputError(f"write takes a path or a cv2.FileStorage, not {type(fs).__name__}")
        if name:
            fs.startWriteStruct(name, cv2.FileNode_MAP)
        self._write_parameters(fs)
        if name:
            fs.endWriteStruct()

    def _write_parameters(self, fs: cv2.FileStorage) -> None:
        fs.write("name", self.getDefaultName())
        fs.write("model", self._model)
        for name, value in settings_of(self).items():
            fs.write(name, np.array(value) if name == "scales" else value)

    @cv2_call
    def read(self, fn: Any) -> None:
        """Read the parameters, model included, from a `cv2.FileNode` or a file of `write` or `save`."""
        if isinstance(fn, (str, os.PathLike)):
            with opened_storage(fn, cv2.FILE_STORAGE_READ) as storage:
                root, saved = storage.root(), storage.root().getNode("D2Feature")
                self._read_parameters(root if saved.empty() else saved)
            return
        if not isinstance(fn, cv2.FileNode):
            raise InputError(f"read takes a path or a cv2.FileNode, not {type(fn).__name__}")
        self._read_parameters(fn)

    def _read_parameters(self, fn: cv2.FileNode) -> None:
        nodes = {key: fn.getNode(key) for key in ("name", "model", *SETTINGS)}
        try:
            name, model = nodes["name"].string(), nodes["model"].string()
        except UnicodeDecodeError as error:
            raise InputError(f"the node does not hold text: {error}") from None
        if any(node.empty() for node in nodes.values()) or name != self.getDefaultName():
            raise InputError("the node does not hold the parameters of a D2Feature")
        numbers: dict[str, Any] = {}
        for key in (key for key in SETTINGS if key != "scales"):
            if not (nodes[key].isInt() or (nodes[key].isReal() and key == "scoreThreshold")):
                raise InputError(f"the parameter {key} of the node is not a number of its kind")
            numbers[key] = int(nodes[key].real()) if nodes[key].isInt() else nodes[key].real()
        scales = None
        with contextlib.suppress(cv2.error):  # older versions' word of an empty matrix
            scales = nodes["scales"].mat() if nodes["scales"].isMap() else None
        if scales is None:
            raise InputError("the parameter scales of the node is not a matrix, or an empty one")
        # All is checked before anything is changed.
        fresh = D2Feature(
            **numbers,
            scales=scales.ravel().tolist(),
            model=model,
            provider=self._provider,
            threads=self._threads,
        )
        self.__dict__.update(fresh.__dict__)

    @cv2_call
    def save(self, filename: str) -> None:
        """Write the parameters to a new file, under "D2Feature"."""
        with opened_storage(filename, cv2.FILE_STORAGE_WRITE) as storage:
            self.write(storage, "D2Feature")

    # ---- copying and printing

    def _state(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_held"}

    def __copy__(self) -> "D2Feature":
        """Runs the model that this one has loaded; what is pickled or copied deeply loads its own."""
        made: D2Feature = new_object(type(self))
        made.__dict__.update(self._state(), _held=self._session)
        return made

    def __repr__(self) -> str:
        session = self._session
        where = session.provider.removesuffix("ExecutionProvider")
        where += f", {session.threads} threads" if where == "CPU" else ""
        tile = f"tile={self._tile}, " if self._tile > 0 else ""
        turns = f"rotations={self._rotations}, " if self._rotations > 1 else ""
        return (
            f"D2Feature(nfeatures={self._nfeatures}, scoreThreshold={self._score_threshold:g}, "
            f"scales={self.getScales()}, maxEdge={self._max_edge}, maxSumEdges={self._max_sum_edges}, "
            f"{tile}{turns}model={session.info.name!r} {session.info.version}, on {where})"
        )


@cv2_call
def create(
    nfeatures: int | None = 0,
    *,
    scoreThreshold: float = 0.0,
    scales: Sequence[float] | None = None,
    maxEdge: int = 1600,
    maxSumEdges: int = 2800,
    model: str | os.PathLike[str] = DEFAULT,
    provider: Provider = "auto",
    threads: int = 0,
    tile: int = 0,
    rotations: int = 1,
) -> D2Feature:
    """A D2-Net feature detector and descriptor, used as `cv2.SIFT_create()`'s result is.

    Args:
        nfeatures: keep at most so many features, those with the highest response, after the mask and the
            threshold; 0 or less, or None, keeps all.
        scoreThreshold: keep features whose response is above this.
        scales: sizes of the image pyramid's levels relative to the image; None for `d2feat.MULTISCALE`, with
            the authors' checkpoints for one level. (1.0,) is twice as fast as the default and enough where
            things are of the same size in all images; (0.5, 1.0, 2.0) is the paper's pyramid.
        maxEdge, maxSumEdges: images whose longer edge, or whose width plus height, is above these are made
            smaller first, as the original does, for time and memory grow with the pixels; keypoints are
            mapped back. 0 or less for no limit.
        model: name of a bundled or downloaded model (``d2feat models`` lists them), or path of a file that
            ``d2feat export`` made. "auto" is d2net in eight bits (d2net-int8) on a CPU that is fast at
            them, else in single precision (d2net).
        provider: "auto" (CUDA if it loads, else CPU), "cuda", "tensorrt", "cpu", or a list as ONNX Runtime's
            `InferenceSession` takes it. A provider asked for by name is used or an error is raised.
        threads: on the CPU; 0 takes as many as the process may use.
        tile: images whose longer edge is above this are extracted in overlapping tiles of at most so many
            pixels each way of a level, in memory that a tile needs; 1024 suits most. No image is made smaller
            then: maxEdge and maxSumEdges do not count. `d2feat.tiles` says what is the same as in one piece.
            0 or less for no tiles.
        rotations: descriptors are pooled over so many evenly spaced rotations of the image, for scenes that
            turn by more than the model bears (ours bear any angle, the authors' 30 degrees). 4 suits any, at
            four times the cost. `KeyPoint.angle` is then an orientation that turns with the scene; it is more
            exact with 8, at twelve times the cost, and of a narrow image far more.

    Raises:
        InputError, ModelError, ProviderError: all are `cv2.error`; the message says what to do.

    Example:
        >>> import d2feat
        >>> d2 = d2feat.create(nfeatures=2048)
        >>> d2.getNFeatures()
        2048
    """
    return D2Feature(
        nfeatures,
        scoreThreshold=scoreThreshold,
        scales=scales,
        maxEdge=maxEdge,
        maxSumEdges=maxSumEdges,
        model=model,
        provider=provider,
        threads=threads,
        tile=tile,
        rotations=rotations,
    )


# Functions and no methods, so that no subclass of a program hides them.


def session_of(detector: D2Feature) -> Session:
    """The model that the detector has loaded."""
    return detector._session


def settings_of(detector: D2Feature) -> dict[str, Any]:
    """The values of `SETTINGS`, by their names."""
    values = (
        *(detector._nfeatures, detector._score_threshold, tuple(detector._scales.tolist())),
        *(detector._max_edge, detector._max_sum_edges, detector._tile, detector._rotations),
    )
    return dict(zip(SETTINGS, values, strict=True))
