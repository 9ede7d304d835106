# ruff: noqa: D417 - these docstrings are also those of BackfillClient's methods, without connection and schema
"""The dead letter queue as lines of JSON: export and import.

A line is an entry with all its columns, those that users added included, as the table has them: a payload that jsonb could not
hold is a line's ``{"backfill:json": "<text>"}`` as it is the table's, and so comes back byte for byte. Neither way holds more
than a few megabytes of lines in memory.

An import is one transaction: all of it or nothing. A line that cannot be is found by its number, by halving the batch that the
database refused.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Final, NamedTuple

import asyncpg

from backfill.client.dlq import LOWEST_ID, checked_id, chosen_by, fetch_in_order, whole
from backfill.db import Connection, is_connection_error
from backfill.errors import InvalidJob
from backfill.model import DlqFilter, ImportLine, import_line
from backfill.sql import quote_ident, text

_MOST_LINES: Final = 1_000
_MOST_TEXT: Final = 4_000_000  # characters of lines that are worth a round trip of their own
_COLUMNS: Final = "id, requeued_job_id"  # where the statement's lists of columns end
_IN_STATEMENT: Final = frozenset({"payload", "id", "requeued_job_id"})


class Imported(NamedTuple):
    """What ``import_dlq_jobs`` did.

    Attributes:
        imported: How many entries came in.
        present: How many were there already, with the same id, and stay as they are.
        key_taken: How many were left out because another entry has their job key.
    """

    imported: int
    present: int
    key_taken: int


async def export_dlq_jobs(
    connection: Connection, schema: str, dlq_filter: DlqFilter | None = None, *, after: int | None = None
) -> AsyncIterator[str]:
    """Yield entries as lines of JSON (without the line's end), in the order of their ids, with all their columns.

    Entries that come in meanwhile are left out; those that change are given as they are when it is their turn.

    Args:
        dlq_filter: Which entries; its ``limit`` and ``offset`` must be left alone. None = all.
        after: Only entries with a greater id.

    Raises:
        InvalidJob: The filter pages.
    """
    chosen = chosen_by(whole(dlq_filter or DlqFilter()))
    after_id = LOWEST_ID if after is None else checked_id(after)
    (span,) = await fetch_in_order(connection, schema, "dlq_span", *chosen, after_id, None, False)  # noqa: FBT003 - a column
    last_id = span["last_id"]
    size = 10
    while last_id is not None:
        rows = await fetch_in_order(connection, schema, "export_dlq_jobs", *chosen, after_id, last_id, size)
        if not rows:
            return
        for row in rows:
            yield row["line"]
        after_id = rows[-1]["id"]
        mean = sum(len(row["line"]) for row in rows) // len(rows) + 1
        size = max(1, min(2 * size, _MOST_LINES, _MOST_TEXT // mean))


async def import_dlq_jobs(
    connection: Connection,
    schema: str,
    lines: Iterable[str | bytes] | AsyncIterable[str | bytes],
    *,
    new_ids: bool = False,
    dry_run: bool = False,
) -> Imported:
    """Put entries in that ``export_dlq_jobs`` gave, all of them in one transaction.

    Entries keep their ids, so that importing the same again changes nothing. One that is there already stays as it is, and so
    does the entry of a job key that a line has too. An entry that was out is here, unless the job that it was out as is.

    Args:
        lines: Lines of JSON; empty ones do not count.
        new_ids: Give the entries new ids. Without a job key, one that is imported twice is then there twice.
        dry_run: Do all of it, and undo it.

    Raises:
        InvalidJob: A line cannot be an entry, or its id is another entry's; the message says its number. Nothing was imported.
    """
    importer = _Importer(connection, schema, await _columns(connection, schema), new_ids=new_ids, dry_run=dry_run)
    transaction = connection.transaction()
    await transaction.start()
    try:
        async for batch in _batches(_numbered(lines)):
            await importer.put(batch)
    except BaseException:
        await transaction.rollback()
        raise
    if dry_run:
        await transaction.rollback()
    else:
        await transaction.commit()
    return Imported(importer.imported, importer.present, importer.key_taken)


class _Importer:
    """Puts batches of lines in, and counts."""

    def __init__(
        self, connection: Connection, schema: str, columns: dict[str, bool], *, new_ids: bool, dry_run: bool
    ) -> None:
        self._connection = connection
        self._schema = schema
        self._columns = columns
        self._new_ids = new_ids
        self._dry_run = dry_run
        self._highest = LOWEST_ID
        self.imported = 0
        self.present = 0
        self.key_taken = 0

    async def put(self, batch: list[ImportLine]) -> None:
        """Put lines in that have the same columns, in the caller's transaction."""
        unknown = sorted(batch[0].columns.difference(self._columns))
        if unknown:
            raise InvalidJob(f"line {batch[0].number}: the dead letter queue has no column {', '.join(unknown)}")
        ids = await self._ids(batch)
        made = await self._insert(batch, ids)
        self.imported += len(made)
        if len(made) < len(batch):
            await self._account_for(batch, ids, made)

    async def _ids(self, batch: list[ImportLine]) -> list[int]:
        """The ids that the lines' entries get; no new entry will have them."""
        given = [None if self._new_ids else line.entry_id for line in batch]
        highest = max((entry_id for entry_id in given if entry_id is not None), default=LOWEST_ID)
        if highest > self._highest and not self._dry_run:  # a sequence is not rolled back
            self._highest = highest
            await self._connection.execute(text("pass_over_dlq_ids", self._schema), self._schema, highest)
        new = iter(await self._connection.fetchval(text("new_dlq_ids", self._schema), self._schema, given.count(None)))
        return [next(new) if entry_id is None else entry_id for entry_id in given]

    async def _insert(self, batch: list[ImportLine], ids: list[int]) -> set[int]:
        """Put lines in; the ids of those that nothing was in the way of.

        Raises:
            InvalidJob: The database refuses a line.
        """
        further = sorted(name for name in batch[0].columns - _IN_STATEMENT if self._columns[name])
        columns = ", ".join([_COLUMNS, *map(quote_ident, further)])
        statement = text("import_dlq_jobs", self._schema).replace(_COLUMNS, columns)
        try:
            async with self._connection.transaction():
                rows = await self._connection.fetch(statement, [line.text for line in batch], ids, self._new_ids)
        except asyncpg.PostgresError as error:
            if is_connection_error(error):
                raise
            if len(batch) == 1:
                said = "; ".join(str(error).splitlines())
                raise InvalidJob(f"line {batch[0].number}: {said}; nothing was imported") from error
            half = len(batch) // 2
            first = await self._insert(batch[:half], ids[:half])
            return first | await self._insert(batch[half:], ids[half:])
        return {row["id"] for row in rows}

    async def _account_for(self, batch: list[ImportLine], ids: list[int], made: set[int]) -> None:
        """Count the lines of a batch that were left out, by what is in their way.

        Raises:
            InvalidJob: It is an entry that has nothing to do with the line's.
        """
        statement = text("dlq_import_obstacles", self._schema)
        rows = await self._connection.fetch(statement, [line.text for line in batch], ids)
        found = {row["id"]: row["obstacle"] for row in rows}
        for line, entry_id in zip(batch, ids, strict=True):
            obstacle = found[entry_id]
            if entry_id in made:
                made.remove(entry_id)  # a further line with this id was left out
            elif obstacle == "there":
                self.present += 1
            elif obstacle == "key":
                self.key_taken += 1
            elif obstacle == "id":
                raise InvalidJob(
                    f"line {line.number}: id {entry_id} is that of another entry here; nothing was imported. Import with new ids"
                )
            else:
                raise InvalidJob(
                    f"line {line.number}: the entry was not stored, because of a trigger or a unique index that was added to the"
                    " dead letter queue; nothing was imported"
                )


async def _columns(connection: Connection, schema: str) -> dict[str, bool]:
    """The table's columns, and whether values can be put into them."""
    rows = await connection.fetch(text("dlq_columns", schema), schema)
    return {row["name"]: row["insertable"] for row in rows}


async def _numbered(lines: Iterable[str | bytes] | AsyncIterable[str | bytes]) -> AsyncIterator[ImportLine]:
    """The lines, checked, with their numbers."""
    number = 0
    async for raw in _each(lines):
        number += 1
        line = import_line(number, raw)
        if line is not None:
            yield line


async def _each(lines: Iterable[str | bytes] | AsyncIterable[str | bytes]) -> AsyncIterator[str | bytes]:
    if isinstance(lines, AsyncIterable):
        async for line in lines:
            yield line
    else:
        for line in lines:
            yield line


async def _batches(lines: AsyncIterator[ImportLine]) -> AsyncIterator[list[ImportLine]]:
    """The lines in batches that have the same columns and are not too large."""
    batch: list[ImportLine] = []
    size = 0
    async for line in lines:
        full = len(batch) == _MOST_LINES or size + len(line.text) > _MOST_TEXT
        if batch and (full or line.columns != batch[0].columns):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.text)
    if batch:
        yield batch
