"""Bytes and seconds as people read them."""


def amount(count: float) -> str:
    """So many bytes, in a unit that leaves three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float) -> str:
    """So many seconds, in a unit that leaves a few of it."""
    for unit, size in (("s", 60), ("min", 60)):
        if seconds < 2 * size:
            return f"{seconds:.2g} {unit}" if seconds < 10 else f"{seconds:.0f} {unit}"
        seconds /= size
    return f"{seconds:.1f} h"
