"""What the seven functions do, in plain Python: one transaction after another, rows as dicts by id.

Written from the contract, not from the SQL. Every operation takes the transaction's time, and gives the rows that the
function returns (without their ids where they are new), or raises `RefusedError` and leaves everything as it was.
"""

import copy
import dataclasses
from datetime import datetime, timedelta
from typing import Any

STALE = timedelta(hours=4)
NAMES = ("task", "queue", "payload", "priority", "run_at", "attempts", "max_attempts", "last_error", "created_at")
ROW = (*NAMES, "updated_at", "key", "locked_at", "locked_by", "revision", "flags", "is_available")

Row = dict[str, Any]


class RefusedError(Exception):
    """The function raises; `states` are the SQLSTATEs that it may have, several when several things are wrong."""

    def __init__(self, *states: str) -> None:
        super().__init__(*states)
        self.states = states


@dataclasses.dataclass
class Model:
    """The tables, and what was told on ``jobs:insert``."""

    jobs: dict[int, Row] = dataclasses.field(default_factory=dict)
    tasks: set[str] = dataclasses.field(default_factory=set)
    queues: dict[str, tuple[datetime, str] | None] = dataclasses.field(default_factory=dict)
    told: list[Any] = dataclasses.field(default_factory=list)

    def add_job(self, now: datetime, spec: Row, mode: str | None) -> list[Row]:
        key = spec["job_key"]
        if key is None or mode in (None, "replace", "preserve_run_at"):
            return self.add_jobs(now, [spec], mode == "preserve_run_at")
        if mode != "unsafe_dedupe":
            raise RefusedError("GWBKM")
        if wrong := self._wrong(spec):
            raise RefusedError(*wrong)
        self._name(spec)
        for row in self.jobs.values():
            if row["key"] == key:
                row.update(revision=row["revision"] + 1, updated_at=now)
                return [row]
        self.told.append(1)
        return [self._new(now, spec)]

    def add_jobs(self, now: datetime, specs: list[Row] | None, preserve: bool | None) -> list[Row]:
        if not specs:
            self.told.append("")
            return []
        keys = [spec["job_key"] for spec in specs if spec["job_key"] is not None]
        wrong = [state for spec in specs for state in self._wrong(spec)]
        if len(set(keys)) < len(keys):
            wrong.append("21000")
        if wrong:
            raise RefusedError(*wrong)
        for row in self.jobs.values():
            if row["key"] in keys and not available(row):
                row.update(key=None, attempts=row["max_attempts"], updated_at=now)
        self.told.append(len(specs))
        return [self._put(now, spec, bool(preserve)) for spec in specs]

    def _put(self, now: datetime, spec: Row, preserve: bool) -> Row:
        self._name(spec)
        fresh = self._new(now, spec)
        for row in self.jobs.values():
            if spec["job_key"] is not None and row["key"] == spec["job_key"]:
                joined = isinstance(row["payload"], list) and isinstance(fresh["payload"], list)
                kept: Row = {"created_at": row["created_at"], "revision": row["revision"] + 1}
                if joined:
                    kept["payload"] = row["payload"] + fresh["payload"]
                if preserve and row["attempts"] == 0:
                    kept["run_at"] = row["run_at"]
                row.update(fresh | kept)
                return row
        return fresh

    def remove_job(self, now: datetime, key: str | None) -> list[Row | None]:
        for number, row in self.jobs.items():
            if key is not None and row["key"] == key:
                if runs(row, now):
                    row.update(key=None, attempts=row["max_attempts"], updated_at=now)
                else:
                    del self.jobs[number]
                    self.told.append(-1)
                return [row]
        return [None]

    def complete_jobs(self, now: datetime, ids: list[int]) -> list[Row]:
        return [self.jobs.pop(number) for number in self._still(now, ids)]

    def permanently_fail_jobs(self, now: datetime, ids: list[int], message: str | None) -> list[Row]:
        rows = [self.jobs[number] for number in self._still(now, ids)]
        for row in rows:
            error = "Manually marked as failed" if message is None else message
            row.update(attempts=row["max_attempts"], last_error=error, updated_at=now)
        return rows

    def reschedule_jobs(self, now: datetime, ids: list[int], **given: Any) -> list[Row]:
        rows = [self.jobs[number] for number in self._still(now, ids)]
        if rows and given["max_attempts"] == 0:
            raise RefusedError("23514")
        for row in rows:
            row.update({name: value for name, value in given.items() if value is not None}, updated_at=now)
        return rows

    def force_unlock_workers(self, worker_ids: list[str]) -> None:
        for row in self.jobs.values():
            if row["locked_by"] in worker_ids:
                row.update(locked_at=None, locked_by=None)
        for name, lock in self.queues.items():
            if lock is not None and lock[1] in worker_ids:
                self.queues[name] = None

    # What workers do, as far as the functions can see it.

    def claim(self, number: int, at: datetime, by: str) -> None:
        row = self.jobs[number]
        row.update(locked_at=at, locked_by=by, attempts=row["attempts"] + 1)
        if row["queue"] is not None:
            self.queues[row["queue"]] = (at, by)

    def fail(self, number: int) -> None:
        row = self.jobs[number]
        row.update(locked_at=None, locked_by=None, last_error="it broke")
        if row["queue"] is not None:
            self.queues[row["queue"]] = None

    def exhaust(self, number: int) -> None:
        self.jobs[number]["attempts"] = self.jobs[number]["max_attempts"]

    def copy(self) -> "Model":
        return copy.deepcopy(self)

    def _still(self, now: datetime, ids: list[int]) -> list[int]:
        return sorted(number for number in set(ids) if number in self.jobs and not runs(self.jobs[number], now))

    def _name(self, spec: Row) -> None:
        self.tasks.add(spec["identifier"])
        if spec["queue_name"] is not None:
            self.queues.setdefault(spec["queue_name"], None)

    @staticmethod
    def _wrong(spec: Row) -> list[str]:
        found = ["22023"] if None in (spec["flags"] or ()) else []
        return found + (["23514"] if spec["max_attempts"] == 0 or spec["job_key"] == "" else [])

    @staticmethod
    def _new(now: datetime, spec: Row) -> Row:
        def or_else(name: str, default: Any) -> Any:
            return default if spec[name] is None else spec[name]

        return {
            "task": spec["identifier"],
            "queue": spec["queue_name"],
            "payload": spec["payload"],
            "priority": or_else("priority", 0),
            "run_at": or_else("run_at", now),
            "attempts": 0,
            "max_attempts": or_else("max_attempts", 25),
            "last_error": None,
            "created_at": now,
            "updated_at": now,
            "key": spec["job_key"],
            "locked_at": None,
            "locked_by": None,
            "revision": 0,
            "flags": dict.fromkeys(spec["flags"], True) if spec["flags"] else None,
        }


def available(row: Row) -> bool:
    return row["locked_at"] is None and row["attempts"] < row["max_attempts"]


def runs(row: Row, now: datetime) -> bool:
    """Whether the functions leave the job alone: locked for no more than four hours."""
    return row["locked_at"] is not None and row["locked_at"] >= now - STALE
