"""The methods of BackfillClient: each is a function of this package, with the client's pool behind it."""

from backfill.client import cleanup, dlq, dlq_bulk, dlq_files, dlq_requeue, dlq_scanner, jobs, locks
from backfill.client import inspect as look
from backfill.client import workers as fleet
from backfill.client.enqueuer import Enqueuer
from backfill.client.methods import adding, operation, streaming


class Operations:
    """What a client can do; the class that has these methods has a pool, a schema and an enqueuer."""

    enqueue = adding(Enqueuer.enqueue)
    enqueue_task = adding(Enqueuer.enqueue_task)
    enqueue_many = adding(Enqueuer.enqueue_many)
    enqueue_stream = adding(Enqueuer.enqueue_stream)

    get_job = operation(look.get_job)
    list_jobs = operation(look.list_jobs)
    count_jobs = operation(look.count_jobs)

    remove_job = operation(jobs.remove_job)
    complete_jobs = operation(jobs.complete_jobs)
    cancel_jobs = operation(jobs.cancel_jobs)
    fail_jobs = operation(jobs.fail_jobs)
    reschedule_jobs = operation(jobs.reschedule_jobs)
    retry_jobs = operation(jobs.retry_jobs)
    force_unlock_workers = operation(jobs.force_unlock_workers)
    cleanup = operation(cleanup.cleanup)
    workers = operation(fleet.workers)
    release_stale_job_locks = operation(locks.release_stale_job_locks)
    release_stale_queue_locks = operation(locks.release_stale_queue_locks)
    cleanup_permanently_failed_jobs = operation(locks.cleanup_permanently_failed_jobs)
    startup_cleanup = operation(locks.startup_cleanup)
    start_stale_lock_cleanup = locks.start_stale_lock_cleanup

    init_dlq = operation(dlq.init_dlq)
    list_dlq_jobs = operation(dlq.list_dlq_jobs)
    get_dlq_job = operation(dlq.get_dlq_job)
    dlq_stats = operation(dlq.dlq_stats)
    page_dlq_jobs = operation(dlq.page_dlq_jobs)
    requeue_dlq_job = operation(dlq_requeue.requeue_dlq_job)
    edit_dlq_job = operation(dlq_requeue.edit_dlq_job)
    delete_dlq_job = operation(dlq.delete_dlq_job)
    delete_dlq_by_job_key = operation(dlq.delete_dlq_by_job_key)
    add_to_dlq = operation(dlq.add_to_dlq)
    requeue_dlq_jobs = operation(dlq_bulk.requeue_dlq_jobs)
    delete_dlq_jobs = operation(dlq_bulk.delete_dlq_jobs)
    prune_dlq_jobs = operation(dlq_bulk.prune_dlq_jobs)
    export_dlq_jobs = streaming(dlq_files.export_dlq_jobs)
    import_dlq_jobs = operation(dlq_files.import_dlq_jobs)
    start_dlq_processor = dlq_scanner.start_dlq_processor
    process_failed_jobs = operation(dlq_scanner.process_failed_jobs)
