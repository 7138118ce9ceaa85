"""How many CPU cores this process may use: fewer than the machine has, in a container or under taskset."""

import os
from pathlib import Path


def cores() -> int:
    """CPU cores this process may use, at least 1: ONNX Runtime by itself counts all that the machine has.

    Those of its affinity, and of these no more than the quota of its control group pays for.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    # Part of a core more is a thread that is stopped half of the time, and the others wait for it.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(system: Path = Path("/")) -> float | None:
    """The cores that the control groups of this process pay for, None without a limit: the strictest of the tree.

    `system` is the folder in which /proc and /sys lie. Read are cpu.max (version 2) and cpu.cfs_quota_us (version 1).
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        # "0::/path" is version 2, "4:cpu,cpuacct:/path" one of version 1.
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, read = system / "sys/fs/cgroup", _second_version
        elif "cpu" in controllers.split(","):
            root, read = system / "sys/fs/cgroup/cpu", _first_version
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted: its own limit then lies at the root.
        for each in (folder, *folder.parents):
            if not each.is_relative_to(root):
                break
            if (limit := read(each)) is not None:
                found.append(limit)
    return min(found, default=None)


def _second_version(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _first_version(folder: Path) -> float | None:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
