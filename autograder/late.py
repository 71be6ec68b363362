"""Late work as course.toml wants it: until when, for how much, and who has longer. Without settings it costs nothing.

[late]
per_day = 10                  # percent of an assignment's points, for each day that has begun
at_most = 50                  # percent
grace = "10 minutes"          # that cost nothing
zone = "Europe/Berlin"        # of the times below

[late.due]
"02-self-attention" = 2026-11-16T23:59:00

[late.extra_time]             # by what a student is called in submitted/
student-07 = "3 days"                   # for every assignment
student-09 = { "06-gpt" = "1 week" }    # for one
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

DAY = 24 * 60 * 60
LONGEST = timedelta(days=366)

_PART = r"(\d{1,6}(?:\.\d{1,6})?) *(minute|hour|day|week)s?"
_DURATION = re.compile(rf"{_PART}(?:(?:,| and)? +{_PART})*")
_Percent = Annotated[float, Meta(ge=0, le=100)]


class Late(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table [late] of course.toml."""

    per_day: _Percent = 0.0
    at_most: _Percent = 100.0
    grace: str = "0 minutes"
    zone: str = "UTC"
    due: Mapping[str, datetime] = {}
    extra_time: Mapping[str, str | Mapping[str, str]] = {}

    def trouble(self) -> str:
        """What of it cannot be meant, "" if all can."""
        try:
            ZoneInfo(self.zone)
        except (OSError, ValueError, LookupError):
            return f"there is no time zone {self.zone!r}; one is called Europe/Berlin"
        told = [self.grace]
        for more in self.extra_time.values():
            told += [more] if isinstance(more, str) else more.values()
        if wrong := next((text for text in told if _duration(text) is None), None):
            return f"{wrong!r} is no length of time up to a year: write such as '10 minutes' or '1 day 12 hours'"
        if odd := next((name for name, due in self.due.items() if not 2000 <= due.year < 2200), None):
            return f"{odd} is due in the year {self.due[odd].year}"
        return ""

    def chapters(self) -> set[str]:
        """The assignments that it names."""
        some = [set(more) for more in self.extra_time.values() if not isinstance(more, str)]
        return set(self.due).union(*some)

    def until(self, assignment: str) -> datetime | None:
        """When it is due, None where course.toml does not say."""
        due = self.due.get(assignment)
        if due is None:
            return None
        return (due if due.tzinfo else due.replace(tzinfo=ZoneInfo(self.zone))).astimezone(UTC)

    def extra(self, student: str, assignment: str) -> timedelta | None:
        """How much longer somebody has."""
        more = self.extra_time.get(student)
        text = more if isinstance(more, str) or more is None else more.get(assignment)
        return _duration(text) if text else None

    def penalty(self, seconds: float, points: float) -> float:
        """What it costs to be so late with an assignment that is worth so many points."""
        grace = _duration(self.grace) or timedelta()
        if seconds <= grace.total_seconds():
            return 0.0
        percent = min(self.at_most, self.per_day * math.ceil(seconds / DAY))
        return round(points * percent / 100, 2)


def _duration(text: str) -> timedelta | None:
    """Such as "10 minutes" or "1 day 12 hours"; None for what is no length of time, or longer than a year."""
    if len(text) > 100 or not _DURATION.fullmatch(text.strip()):
        return None
    total = sum((timedelta(**{f"{unit}s": float(count)}) for count, unit in re.findall(_PART, text)), timedelta())
    return total if total <= LONGEST else None
