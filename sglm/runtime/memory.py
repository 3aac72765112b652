"""The amount of free memory."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> float | None:
    """Returns the number of bytes that processes can still take without swapping; None if the
    system does not report it."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return 1024.0 * int(rest.split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return None
