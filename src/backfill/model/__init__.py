"""Values without any input or output: jobs, specs, policies, payloads, and what is kept with a job."""

from backfill.model.dlq import DlqFilter, DlqJob, DlqJobList, DlqStats
from backfill.model.dlq_bulk import DlqEdit, DlqProgress, checked_notes
from backfill.model.dlq_line import ImportLine, import_line
from backfill.model.finding import Finding, FindingLevel
from backfill.model.flags import (
    NO_EXTRAS,
    Extras,
    decode_flags,
    decode_flags_text,
    encode_flags,
    has_extras,
)
from backfill.model.job import Job, JobState
from backfill.model.outcome import AlreadyInProgress, Enqueued, EnqueueOutcome
from backfill.model.payload import decode_payload, encode_payload, payload_decoder
from backfill.model.priority import Priority, priority_band
from backfill.model.queue import Queue
from backfill.model.retry import RetryPolicy, graphile_delay
from backfill.model.spec import DEFAULT_MAX_ATTEMPTS, JobKeyMode, JobSpec
from backfill.model.task import Task, TaskHandler, TaskOptions, options_of, task
from backfill.model.values import checked_identifier, checked_int, checked_positive, checked_text, checked_time
from backfill.model.worker import RunningJob, WorkerInfo, WorkerState

__all__ = [
    "DEFAULT_MAX_ATTEMPTS",
    "NO_EXTRAS",
    "AlreadyInProgress",
    "DlqEdit",
    "DlqFilter",
    "DlqJob",
    "DlqJobList",
    "DlqProgress",
    "DlqStats",
    "EnqueueOutcome",
    "Enqueued",
    "Extras",
    "Finding",
    "FindingLevel",
    "ImportLine",
    "Job",
    "JobKeyMode",
    "JobSpec",
    "JobState",
    "Priority",
    "Queue",
    "RetryPolicy",
    "RunningJob",
    "Task",
    "TaskHandler",
    "TaskOptions",
    "WorkerInfo",
    "WorkerState",
    "checked_identifier",
    "checked_int",
    "checked_notes",
    "checked_positive",
    "checked_text",
    "checked_time",
    "decode_flags",
    "decode_flags_text",
    "decode_payload",
    "encode_flags",
    "encode_payload",
    "graphile_delay",
    "has_extras",
    "import_line",
    "options_of",
    "payload_decoder",
    "priority_band",
    "task",
]
