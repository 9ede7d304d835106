"""The worker: claims jobs, runs their handlers, and writes down how the runs ended."""

from backfill.worker.batch import BatchResultError, ItemsFailedError
from backfill.worker.config import QueueConfig, WorkerConfig
from backfill.worker.context import WorkerContext
from backfill.worker.executables import ExecutableFailedError
from backfill.worker.runner import WorkerRunner, WorkerRunnerBuilder
from backfill.worker.slot import DeadlinePassedError, JobTimeoutError

__all__ = [
    "BatchResultError",
    "DeadlinePassedError",
    "ExecutableFailedError",
    "ItemsFailedError",
    "JobTimeoutError",
    "QueueConfig",
    "WorkerConfig",
    "WorkerContext",
    "WorkerRunner",
    "WorkerRunnerBuilder",
]
