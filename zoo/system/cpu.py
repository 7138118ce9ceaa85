"""The number of CPU cores that this process may use: fewer than the machine has in a container or under taskset."""

import os
from pathlib import Path


def cores() -> int:
    """CPU cores this process may use, at least 1: those of its affinity, limited by the quota of its control group.

    Without this number ONNX Runtime would use all cores of the machine.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    # Round down: a thread on part of a core is often stopped, and the other threads wait for it.
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def cpu_quota(system: Path = Path("/")) -> float | None:
    """The smallest CPU quota of this process's control groups, in cores; None without a limit.

    It is read from cpu.max (version 2) and cpu.cfs_quota_us (version 1). `system` is the folder of /proc and /sys.
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
        # In a container the path may exist only on the host; the limit is then at the root.
        limits = [read(each) for each in (folder, *folder.parents) if each.is_relative_to(root)]
        found += [limit for limit in limits if limit is not None]
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
