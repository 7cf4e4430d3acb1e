"""Days and times as people and spreadsheets write them.

A day means all of it: what came in then came in at its start, what is due then is due at its end. A time without a zone
is in the one that the list is read in. What can be read two ways, and a bare number, is refused with what it may mean.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from spare_core.errors import SettingsError

FORMS: Final = (
    "2026-11-24, 24.11.2026, 24 Nov 2026, or with a time, as in 2026-11-24 09:00 or 2026-11-24T09:00:00+01:00"
)
_LAST: Final = time(23, 59, 59)
_NUMBER: Final = re.compile(r"[+-]?\d+(?:[.,]\d+)?")
_WEEKDAY: Final = re.compile(r"(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+", re.IGNORECASE)
_CLOCK: Final = re.compile(
    r"(?P<day>.*[^\s,])(?:\s*,\s*|\s+|T)(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<part>\d+))?)?"
    r"(?:\s*(?P<half>[ap])\.?m\.?)?\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?",
    re.IGNORECASE,
)
_ZONE_NAME: Final = re.compile(r".*\d:\d\d(?::\d\d)?\s*([A-Za-z]{2,5})")
_YEAR_FIRST: Final = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})")
_DOTTED: Final = re.compile(r"(\d{1,2})\.\s?(\d{1,2})\.\s?(\d{4})")
_YEAR_LAST: Final = re.compile(r"(\d{1,2})([-/])(\d{1,2})\2(\d{4})")
_SHORT_YEAR: Final = re.compile(r"(\d{1,2})([-/.])(\d{1,2})\2(\d{2})")
_DAY_MONTH: Final = re.compile(r"(\d{1,2})(?:st|nd|rd|th|\.)?[\s-]*([a-z]{3,9})\.?,?[\s-]*(\d{4}|\d{2})", re.IGNORECASE)
_MONTH_DAY: Final = re.compile(r"([a-z]{3,9})\.?\s+(\d{1,2})(?:st|nd|rd|th)?,?\s+(\d{4})", re.IGNORECASE)
_MONTHS: Final = ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
                  "november", "december")  # fmt: skip
_SPREADSHEET: Final = datetime(1899, 12, 30)
"""Day 0 of a spreadsheet's numbers."""
_SERIALS: Final = (20_000, 80_000)
"""1954 to 2119."""


def read_zone(name: str) -> tzinfo:
    """A time zone by its name in the IANA data base.

    Raises:
        SettingsError: if there is none.
    """
    try:
        return ZoneInfo(name or "UTC")
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingsError([f"zone is {name!r}; give a name as in Europe/Berlin, or UTC"]) from None


def read_time(text: str, zone: tzinfo, end: bool) -> datetime:
    """The moment that ``text`` means; of a day alone its start, or its ``end``.

    Raises:
        ValueError: for what is no time, or may be several, with what it may be.
    """
    text = " ".join(text.split())
    if _NUMBER.fullmatch(text):
        raise ValueError(_meaning(text))
    text = _WEEKDAY.sub("", text, count=1) if _WEEKDAY.match(text) else text
    clock = _CLOCK.fullmatch(text)
    if clock is None and (named := _ZONE_NAME.fullmatch(text)):
        raise ValueError(f"{named[1]!r} may be several zones; write its distance to UTC, as in 09:00+01:00")
    day = _day(clock["day"] if clock else text)
    if clock is None:
        return datetime.combine(day, _LAST if end else time(), zone)
    try:
        return datetime.combine(day, _time(clock), _offset(clock["zone"], zone))
    except ValueError as error:
        raise ValueError(f"{error}; write a time as in 09:00, 17:30:00 or 17:30+01:00") from None


def _time(clock: re.Match[str]) -> time:
    hour = int(clock["hour"])
    if clock["half"]:
        if not 1 <= hour <= 12:
            raise ValueError(f"{hour} o'clock has no am or pm")
        hour = hour % 12 + (12 if clock["half"].lower() == "p" else 0)
    return time(hour, int(clock["minute"]), int(clock["second"] or 0), int((clock["part"] or "0")[:6].ljust(6, "0")))


def _offset(text: str | None, zone: tzinfo) -> tzinfo:
    if not text:
        return zone
    if text.upper() in ("Z", "UTC", "GMT"):
        return UTC
    digits = text[1:].replace(":", "").ljust(4, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    if size >= timedelta(days=1):
        raise ValueError(f"no place is {text} from UTC")
    return timezone(size if text[0] == "+" else -size)


def _day(text: str) -> date:
    if found := _YEAR_FIRST.fullmatch(text):
        return _date(*(int(found[part]) for part in (1, 3, 4)))
    if found := _DOTTED.fullmatch(text):
        return _date(int(found[3]), int(found[2]), int(found[1]))
    if found := _YEAR_LAST.fullmatch(text):
        return _either(int(found[1]), int(found[3]), int(found[4]))
    if _SHORT_YEAR.fullmatch(text):
        raise ValueError(f"its year has two digits, so it may mean several days; write {FORMS}")
    if found := _DAY_MONTH.fullmatch(text):
        year = int(found[3])
        return _date(year if year > 99 else 2000 + year, _month(found[2]), int(found[1]))
    if found := _MONTH_DAY.fullmatch(text):
        return _date(int(found[3]), _month(found[1]), int(found[2]))
    raise ValueError(f"this is no day; write {FORMS}")


def _either(first: int, second: int, year: int) -> date:
    """Day first as in Europe, or month first as in America, where only one of them can be."""
    if first == second or first > 12 or second > 12:
        day, month = (first, second) if second <= 12 else (second, first)
        return _date(year, month, day)
    readings = " or ".join(str(_date(year, month, day)) for day, month in ((first, second), (second, first)))
    raise ValueError(f"it may be {readings}; write that")


def _date(year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError as error:
        raise ValueError(f"there is no such day ({error}); write {FORMS}") from None


def _month(name: str) -> int:
    for number, month in enumerate(_MONTHS, 1):
        if month == name.lower() or (month[:3] == name.lower()[:3] and len(name) <= 4):
            return number
    raise ValueError(f"{name!r} is no month in English; write {FORMS}")


def _meaning(text: str) -> str:
    """What a bare number may stand for."""
    number, digits = float(text.replace(",", ".")), text.partition(".")[0]
    if len(digits) == 8:
        try:
            return f"it is a number; if it means {date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))}, write that"
        except ValueError:
            pass
    if _SERIALS[0] <= number <= _SERIALS[1]:
        meant = _SPREADSHEET + timedelta(minutes=round(number * 24 * 60))
        shown = meant.strftime("%Y-%m-%d %H:%M" if meant.time() != time() else "%Y-%m-%d")
        return f"it is a number; if it is a spreadsheet's for {shown}, write that, in a cell formatted as text"
    for unit, name in ((1, "seconds"), (1000, "milliseconds")):
        if 3e8 <= number / unit < 5e9:
            meant = datetime.fromtimestamp(number / unit, UTC)
            return f"it is a number; if it means {name} since 1970, write {meant:%Y-%m-%dT%H:%M:%SZ}"
    return f"it is a number, which names no day; write {FORMS}"
