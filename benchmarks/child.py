"""One detector in a process of its own: how long until its first result, and how much memory at most.

``python -m benchmarks.child METHOD WIDTH HEIGHT [TILE [NFEATURES [IMAGES]]]`` prints JSON.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def measure(
    method: str, width: int, height: int, tile: int = 0, nfeatures: int = 0, images: int = 1
) -> dict[str, float]:
    """Run the method on images of one size in a new process.

    Returns:
        ``start``: seconds from the start of Python's first line to the first result, but for the time that
        making the picture takes; ``peak``: bytes of memory at most; ``imported``: at most until all was
        imported.
    """
    numbers = map(str, (width, height, tile, nfeatures, images))
    command = [sys.executable, "-m", "benchmarks.child", method, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts the parent's memory into ru_maxrss
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _main(method: str, width: int, height: int, tile: int = 0, nfeatures: int = 0, images: int = 1) -> None:
    start = time.perf_counter()
    import cv2
    import numpy as np

    make: Any
    if method in ("SIFT", "ORB", "AKAZE"):

        def make() -> Any:
            detector = getattr(cv2, f"{method}_create")()
            return lambda: detector.detectAndCompute(image, None)
    elif method == "literal D2-Net":
        import onnx

        from d2feat.model import find_model
        from export.checkpoint import network_weights
        from tests.reference import extract

        def make() -> Any:
            weights = network_weights(onnx.load(find_model("d2net")))
            return lambda: extract(image, weights, head="paper", descriptor_relu=True)
    else:
        import d2feat

        def make() -> Any:
            detector = d2feat.create(nfeatures, scales=(1.0,), model=method, provider="cpu", tile=tile)
            return lambda: detector.detectAndCompute(image)

    imported = _peak()
    paused = time.perf_counter()
    # No photograph, so that nothing but the detector is loaded: blurred noise is full of keypoints.
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 3)
    del noise
    start += time.perf_counter() - paused
    run = make()
    run()
    first = time.perf_counter() - start
    for _ in range(images - 1):
        run()
    print(json.dumps({"start": first, "peak": _peak(), "imported": imported}))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
