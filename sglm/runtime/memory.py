"""How much memory is free."""

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def available_bytes() -> float | None:
    """What a process can still take without swapping; None where the system does not tell."""
    try:
        for line in _MEMINFO.read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return 1024.0 * int(rest.split()[0])
    except (OSError, ValueError, IndexError):
        pass
    return None
