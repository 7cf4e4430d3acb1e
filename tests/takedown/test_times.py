"""Days are understood as people write them, or refused with what they may mean."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spare_core.errors import SettingsError
from spare_core.takedown.times import read_time, read_zone

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("text", [
    "2026-11-24", "2026/11/24", "2026.11.24", "24.11.2026", "24. 11. 2026", "24/11/2026", "11/24/2026", "24-11-2026",
    "24 Nov 2026", "24-Nov-26", "24-Nov-2026", "24th November 2026", "24. November 2026", "November 24, 2026",
    "Nov 24 2026", "Tue, 24 Nov 2026", "Tuesday 24 November 2026", "  2026-11-24 ",
])  # fmt: skip
def test_a_day_is_all_of_it_in_the_lists_zone(text: str) -> None:
    assert read_time(text, BERLIN, end=False) == datetime(2026, 11, 24, tzinfo=BERLIN)
    assert read_time(text, BERLIN, end=True) == datetime(2026, 11, 24, 23, 59, 59, tzinfo=BERLIN)


@pytest.mark.parametrize(("text", "zone"), [
    ("2026-11-24T09:30:00Z", UTC), ("2026-11-24T09:30Z", UTC), ("2026-11-24 09:30:00 UTC", UTC),
    ("2026-11-24T10:30:00+01:00", UTC), ("2026-11-24 10:30:00.000+0100", UTC), ("2026-11-24T10:30+01", UTC),
    ("2026-11-24 09:30", UTC), ("24.11.2026, 9:30", UTC), ("11/24/2026 9:30 AM", UTC), ("24 Nov 2026 09:30", UTC),
    ("24.11.2026 10:30", BERLIN), ("Tue, 24 Nov 2026 09:30:00 GMT", BERLIN), ("2026-11-24t09:30:00z", BERLIN),
])  # fmt: skip
def test_a_time_is_in_its_own_zone_or_the_lists(text: str, zone: ZoneInfo) -> None:
    for end in (False, True):
        assert read_time(text, zone, end) == datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


def test_the_afternoon_is_told_from_the_morning() -> None:
    hours = {"12:05 am": 0, "1:05 a.m.": 1, "12:05 PM": 12, "11:05pm": 23}
    for text, hour in hours.items():
        assert read_time(f"24.11.2026 {text}", UTC, end=False) == datetime(2026, 11, 24, hour, 5, tzinfo=UTC)


@pytest.mark.parametrize(("text", "said"), [
    ("46350", "spreadsheet's for 2026-11-24, write that"),
    ("46350.375", "spreadsheet's for 2026-11-24 09:00"),
    ("46350,375", "spreadsheet's for 2026-11-24 09:00"),
    ("20261124", "if it means 2026-11-24, write that"),
    ("20261399", "names no day"),
    ("2026", "names no day"),
    ("1764000000", "seconds since 1970, write 2025-11-24T16:00:00Z"),
    ("1764000000000", "milliseconds since 1970, write 2025-11-24T16:00:00Z"),
    ("-1", "names no day"),
    ("11/1/2026", "it may be 2026-01-11 or 2026-11-01; write that"),
    ("1/11/2026 09:00", "it may be 2026-11-01 or 2026-01-11"),
    ("24/11/26", "its year has two digits"),
    ("26-11-24", "its year has two digits"),
    ("2026-11-31", "there is no such day"),
    ("31.11.2026", "there is no such day"),
    ("13/13/2026", "there is no such day"),
    ("24 Brumaire 2026", "'Brumaire' is no month in English"),
    ("2026-11-24 25:00", "hour must be in"),
    ("2026-11-24 13:00 pm", "no am or pm"),
    ("2026-11-24 09:00 CET", "'CET' may be several zones; write its distance to UTC"),
    ("next Tuesday", "this is no day; write 2026-11-24"),
    ("", "this is no day"),
])  # fmt: skip
def test_what_is_no_day_or_may_be_several_is_refused_with_what_it_may_mean(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_time(text, UTC, end=False)


@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.times().map(lambda one: one.replace(microsecond=0)))
def test_what_python_writes_is_read_back(day: date, clock: time) -> None:
    moment = datetime.combine(day, clock, BERLIN)
    assert read_time(moment.isoformat(), UTC, end=False) == moment
    assert read_time(str(moment), UTC, end=True) == moment


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_a_reason(text: str) -> None:
    try:
        assert read_time(text, UTC, end=False).tzinfo is not None
    except ValueError as error:
        assert str(error)


def test_a_zone_is_named_as_the_world_does() -> None:
    assert read_zone("") == ZoneInfo("UTC")
    assert read_zone("Europe/Berlin") == BERLIN
    for name in ("Berlin", "../etc/passwd", "CET+1", "/UTC"):
        with pytest.raises(SettingsError, match="give a name as in Europe/Berlin"):
            read_zone(name)
