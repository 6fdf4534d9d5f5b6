"""What this process may use of the machine's processors, and what they are good at."""

import functools
import math
import os
from pathlib import Path


def usable_processors() -> int:
    """Processors by affinity and by the control group's quota, whichever is fewer; at least 1."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    quota = cgroup_quota()
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Processors that the container's quota allows (cgroup v2, then v1), None without one."""
    try:
        quota, period = (root / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        v1_quota = int((root / "cpu/cpu.cfs_quota_us").read_text())
        v1_period = int((root / "cpu/cpu.cfs_period_us").read_text())
        return v1_quota / v1_period if v1_quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


@functools.cache
def has_fast_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor multiplies bytes several times faster than floats (x86 with VNNI).

    Without VNNI, ONNX Runtime's eight-bit products on x86 are slower and may saturate. Other processors with
    a dot product of bytes (ARM's) have not been measured here and count as without.
    """
    try:
        return bool({"avx512_vnni", "avx_vnni"} & set(cpuinfo.read_text().split()))
    except OSError:  # not on Linux: NumPy has looked at the processor, too
        try:
            from numpy._core._multiarray_umath import __cpu_features__ as features  # type: ignore[import-not-found]
        except ImportError:
            return False
        return bool(features.get("AVX512VNNI", features.get("AVX512_ICL", False)))
