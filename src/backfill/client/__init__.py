"""Adding jobs and managing them: functions of a connection and a schema, and BackfillClient over them."""

from backfill.client.cleanup import CleanupTask
from backfill.client.client import BackfillClient
from backfill.client.convenience import (
    enqueue_bulk,
    enqueue_bulk_with_retries,
    enqueue_critical,
    enqueue_emergency,
    enqueue_fast,
    enqueue_fast_with_retries,
    enqueue_serial,
)
from backfill.client.dlq_bulk import Requeued
from backfill.client.dlq_files import Imported
from backfill.client.enqueue import Query, build_enqueue
from backfill.client.enqueuer import Enqueuer
from backfill.client.jobs import Cancelled, Unlocked
from backfill.client.locks import StartupCleanup

__all__ = [
    "BackfillClient",
    "Cancelled",
    "CleanupTask",
    "Enqueuer",
    "Imported",
    "Query",
    "Requeued",
    "StartupCleanup",
    "Unlocked",
    "build_enqueue",
    "enqueue_bulk",
    "enqueue_bulk_with_retries",
    "enqueue_critical",
    "enqueue_emergency",
    "enqueue_fast",
    "enqueue_fast_with_retries",
    "enqueue_serial",
]
