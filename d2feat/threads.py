"""How many processors this process may really use."""

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
