"""Numbers, sizes and times in the words of the page. Pure; mirrored in assets/10-core.js where the browser counts."""

from __future__ import annotations

import math
from datetime import UTC, datetime

MINUS = "\u2212"
NONE = "\u2013"


def integer(value: float | None) -> str:
    """Return a whole number with thin groups, `12 345`, or a dash where there is none."""
    return NONE if value is None else f"{int(value):,}".replace(",", "\u202f")


def compact(value: float | None) -> str:
    """Return a count in three digits: 932, 12.3 k, 1.24 M, 7.1 B."""
    if value is None:
        return NONE
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}\u202f{unit}"
    return str(int(value))


def number(value: float | None, digits: int = 3) -> str:
    """Return a number in significant digits, tiny and huge ones in powers of ten; a dash for none and NaN."""
    if value is None or math.isnan(value):
        return NONE
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{value:.{digits}g}" if 1e-3 <= size < 1e5 else f"{value:.{max(0, digits - 2)}e}"
    return text.replace("-", MINUS)


def fixed(value: float | None, places: int = 2) -> str:
    """Return a number with so many decimals, for columns; a dash for none and NaN."""
    return NONE if value is None or math.isnan(value) else f"{value:.{places}f}".replace("-", MINUS)


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share 0…1 as per cent."""
    return NONE if share is None or math.isnan(share) else f"{100 * share:.{digits}f}\u202f%"


def size(count: float | None) -> str:
    """Return a file size: bytes in powers of 1000."""
    if count is None:
        return NONE
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def seconds(value: float | None) -> str:
    """Return a duration: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if value is None:
        return NONE
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def power_of_ten(log10: float | None) -> tuple[str, str] | None:
    """Return ("10", "4,613") of a number given by its log10, or None where it is 1."""
    return None if not log10 or log10 < 0.3 else ("10", integer(round(log10)))


def ago(moment: str | None, now: datetime | None = None) -> str:
    """Return how long ago an ISO 8601 moment was, in words."""
    if not moment:
        return NONE
    passed = ((now or datetime.now(UTC)) - when(moment)).total_seconds()
    for limit, divisor, unit in ((90, 1, None), (5400, 60, "min"), (129_600, 3600, "h"), (math.inf, 86_400, "d")):
        if passed < limit:
            return "just now" if unit is None else f"{round(passed / divisor)} {unit} ago"
    raise AssertionError("infinity is a limit")


def when(moment: str) -> datetime:
    """Return an ISO 8601 moment as a datetime; one without a zone is UTC."""
    parsed = datetime.fromisoformat(moment)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def plural(count: int, noun: str) -> str:
    """Return `1 unit`, `2 units`."""
    return f"{integer(count)} {noun}{'' if count == 1 else 's'}"
