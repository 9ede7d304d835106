"""Schedules, zones and items at random, for tests of properties."""

from datetime import timedelta

from hypothesis import strategies as st

from backfill.cron import CronItem, CronPattern
from backfill.cron.fields import FIELDS, Field

# Zones of every kind: an hour, half an hour (Lord Howe), gaps at midnight (Beirut, Santiago), a day left out (Apia),
# winter time that is the odd one (Dublin), two changes around Ramadan (Casablanca), quarters (Chatham), none (Kolkata).
ZONES = (
    *("Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "America/Santiago", "Pacific/Apia"),
    *("Europe/Dublin", "Africa/Casablanca", "Pacific/Chatham", "Asia/Kolkata", "America/Sao_Paulo", "Asia/Gaza"),
)


def _values(field: Field) -> st.SearchStrategy[tuple[int, ...]]:
    whole = range(field.low, 7 if field.is_weekday else field.high + 1)
    lists = st.lists(st.sampled_from(whole), min_size=1, max_size=4, unique=True).map(
        lambda found: tuple(sorted(found))
    )
    steps = st.integers(2, 15).map(lambda step: tuple(whole[::step]))
    rows = st.tuples(st.sampled_from(whole), st.sampled_from(whole)).map(
        lambda ends: tuple(range(min(ends), max(ends) + 1))
    )
    return st.one_of(st.just(tuple(whole)), lists, steps, rows)


PATTERNS = st.builds(CronPattern, *(_values(field) for field in FIELDS))
ZONE_NAMES = st.one_of(st.none(), st.sampled_from(ZONES))
_NAMES = st.text("abcXYZ_09-", min_size=1, max_size=8).map(lambda name: f"t{name}")
_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8)
_PAYLOADS = st.dictionaries(
    _TEXTS,
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), _TEXTS),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)  # fmt: skip
_FILLS = st.integers(0, 3_000_000).map(lambda seconds: timedelta(seconds=seconds))


@st.composite
def items(draw: st.DrawFn) -> CronItem:
    """Items that a line can say."""
    fill = draw(_FILLS)
    return CronItem(
        draw(_NAMES),
        draw(PATTERNS),
        draw(_PAYLOADS),
        identifier=draw(st.none() | _NAMES),
        fill=fill,
        missed=draw(st.sampled_from([None, "latest"])),
        max_attempts=draw(st.none() | st.integers(1, 32767)),
        queue=draw(st.none() | _NAMES),
        priority=draw(st.none() | st.integers(-32768, 32767)),
        job_key=draw(st.none() | _TEXTS),
        job_key_mode=draw(st.sampled_from([None, "replace", "preserve_run_at"])),
        zone=draw(ZONE_NAMES),
    )
