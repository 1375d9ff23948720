"""This process's memory, as Linux counts it."""

from pathlib import Path


def resident(field: str) -> int:
    """Bytes of a line of /proc/self/status: "VmRSS" now, "VmHWM" at the peak.

    Not getrusage's ru_maxrss, which across exec keeps the peak of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024
