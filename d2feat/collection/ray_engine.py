"""The work on a cluster: Ray Data with a pool of actors, one model each.

Ray starts, feeds and replaces the actors; a batch whose actor died is given to another. What an actor has
written, whole or not at all, is written again with the same content.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ..errors import D2FeatError, InputError
from ..feature2d import D2Feature
from .local import extract_local
from .parts import part_path

BATCH: Final = 8
"""Images given to an actor at a time, and so lost with it at most."""


class PartWriter:
    """An actor that extracts images into parts, for an HDF5 file."""

    def __init__(self, detector: D2Feature, folder: str, settings: str) -> None:
        self.detector, self.folder, self.settings = detector, Path(folder), settings

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Names and paths to names and what was wrong, empty for nothing."""
        images = dict(zip(batch["name"].tolist(), map(Path, batch["path"].tolist()), strict=True))
        todo = {name: path for name, path in images.items() if not part_path(self.folder, name).exists()}
        failed = dict(extract_local(self.detector, todo, self.folder, self.settings))
        return {"name": list(images), "error": [failed.get(name) or "" for name in images]}


class RowMaker:
    """An actor that extracts images into rows of a table, for Parquet."""

    def __init__(self, detector: D2Feature) -> None:
        self.detector = detector

    def __call__(self, batch: dict[str, Any]) -> Any:
        """Names and paths to a table with a row an image; the columns are in docs/speed.md."""
        import numpy as np
        import pyarrow as pa

        found = list(self.detector.stream(batch["path"].tolist()))
        features = [one.features if one.error is None else None for one in found]

        def column(kind: Any, values: Any) -> Any:
            return pa.array([None if one is None else values(one) for one in features], pa.list_(kind))

        return pa.table(
            {
                "name": pa.array(batch["name"].tolist(), pa.string()),
                "error": pa.array(
                    ["" if one.error is None else str(one.error) for one in found], pa.string()
                ),
                "image_size": column(pa.int32(), lambda one: np.array(one.image_size, np.int32)),
                "keypoints": column(pa.float32(), lambda one: one.keypoints.ravel()),
                "scores": column(pa.float32(), lambda one: one.scores),
                "scales": column(pa.float32(), lambda one: one.scales),
                "descriptors": column(pa.float16(), lambda one: one.descriptors.astype(np.float16).ravel()),
            }
        )


def extract_ray(
    detector: D2Feature, images: dict[str, Path], folder: Path, settings: str, workers: int, gpus: float
) -> Iterator[tuple[str, str | None]]:
    """Extract images into parts, in a folder that all machines share; yields as `extract_local` does."""
    arguments = [detector, str(folder.resolve()), settings]
    done = _dataset(images, workers, gpus).map_batches(
        PartWriter, fn_constructor_args=arguments, **_pool(workers, gpus)
    )
    for row in done.iter_rows():
        yield row["name"], row["error"] or None


def extract_parquet(
    detector: D2Feature, images: dict[str, Path], out: Path, workers: int, gpus: float
) -> list[tuple[str, str]]:
    """Extract images into a folder of Parquet files; returns the names of those that failed, and why."""
    rows = _dataset(images, workers, gpus).map_batches(
        RowMaker, fn_constructor_args=[detector], **_pool(workers, gpus)
    )
    rows.write_parquet(str(out.resolve()), mode="overwrite")
    import pyarrow.parquet as pq

    table = pq.read_table(out, columns=["name", "error"]).to_pylist()
    return [(row["name"], row["error"]) for row in table if row["error"]]


def _dataset(images: dict[str, Path], workers: int, gpus: float) -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise D2FeatError(f"Ray cannot be imported ({error}); pip install 'd2feat[ray]'") from error
    if not ray.is_initialized():
        # The cluster of RAY_ADDRESS, or one here: a processor an actor, and one for Ray's own tasks.
        here: dict[str, Any] = (
            {}
            if "RAY_ADDRESS" in os.environ
            else {"address": "local", "num_cpus": workers + 1, "include_dashboard": False}
        )
        try:
            ray.init(log_to_driver=False, configure_logging=False, **here)
        except Exception as error:
            raise D2FeatError(f"Ray cannot be started: {error}") from error
        there = ray.cluster_resources().get("GPU", 0)
        if here and workers * gpus > there:  # a cluster elsewhere may grow; this one would wait for ever
            ray.shutdown()
            raise InputError(
                f"{workers} actors with {gpus:g} GPUs each are wanted, and here are {there:g} GPUs"
            )
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of each step
    rows = [{"name": name, "path": os.fspath(path.resolve())} for name, path in images.items()]
    return ray.data.from_items(rows, override_num_blocks=max(1, -(-len(rows) // BATCH)))


def _pool(workers: int, gpus: float) -> dict[str, Any]:
    import ray

    return {
        "batch_size": BATCH,
        "compute": ray.data.ActorPoolStrategy(size=workers),
        "num_cpus": 1,
        "num_gpus": gpus,
        "max_restarts": -1,
        "max_task_retries": -1,
    }
