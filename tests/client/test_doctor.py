"""What the doctor makes of figures that a test server can't be brought to."""

from datetime import UTC, datetime, timedelta

import pytest

from backfill.client import doctor
from backfill.model import FindingLevel

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("number", "level"), [(130_020, "problem"), (140_000, "ok"), (180_003, "ok"), (190_000, "advice")]
)
def test_versions_of_the_server(number: int, level: str) -> None:
    assert doctor.of_server({"version": "x", "version_number": number}).level == level


@pytest.mark.parametrize(("seconds", "level"), [(1.9, "ok"), (-1.9, "ok"), (2.1, "advice"), (-90, "advice")])
def test_clocks_that_differ(seconds: float, level: str) -> None:
    found = doctor.of_clock(NOW, NOW + timedelta(seconds=seconds))
    assert (found.level, found.values["seconds"]) == (level, seconds)


def test_a_pooler_in_between() -> None:
    assert doctor.of_pooler(has_pooler=True).level is FindingLevel.ADVICE


@pytest.mark.parametrize(("usage", "level"), [(0.05, "ok"), (0.2, "advice"), (0.6, "problem")])
def test_a_queue_of_notifications_that_fills_up(usage: float, level: str) -> None:
    assert doctor.of_notifications(usage).level == level


def test_a_replication_slot_that_nobody_reads() -> None:
    slot = {"kind": "unused replication slot", "name": "old", "seconds": None, "transactions": 2_000_000}
    other = {"kind": "prepared transaction", "name": "gid", "seconds": 700.0, "transactions": 5}
    found = doctor.of_horizon([slot, other], timedelta(minutes=5), sees_all=True)
    assert found.level is FindingLevel.PROBLEM
    assert "unused replication slot old has held it for 2,000,000 transactions (and 1 more)" in found.message


@pytest.mark.parametrize(("free", "level"), [(4, "problem"), (5, "ok")])
def test_room_for_connections(free: int, level: str) -> None:
    assert doctor.of_connections({"free": free, "max_connections": 100}, []).level == level


def test_autovacuum_that_the_server_has_off() -> None:
    table = {"autovacuum": True, "wait_for": 50.0, "scale_factor": 0.02}
    for setting in ("autovacuum", "track_counts"):
        server = {"autovacuum": True, "track_counts": True, setting: False}
        assert "off on the server" in doctor.of_autovacuum(server, table).message
