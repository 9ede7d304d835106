import json
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from backfill.errors import ConfigurationError
from backfill.observe.logging import JsonFormatter, TextFormatter, configure


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, put back as it was in the end."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: str, *args: object, exc_info: Any = None, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("backfill.worker.release", logging.WARNING, __file__, 1, message, args, exc_info)
    made.created = 1900000000.25
    vars(made).update(extra)
    return made


def test_text_has_time_level_message_and_fields() -> None:
    line = TextFormatter().format(
        record("job %d failed", 7, job_id=7, task="send email", next_run_in=0.1 + 0.2, dlq_id=None)
    )
    assert line == '2030-03-17T17:46:40.250Z WARNING job 7 failed [job_id=7 task="send email" next_run_in=0.3]'
    assert TextFormatter().format(record("plain")) == "2030-03-17T17:46:40.250Z WARNING plain"


def test_json_is_one_object_with_the_fields() -> None:
    line = JsonFormatter().format(record("job %d\nfailed", 7, job_id=7, task="send", verdict="retry", dlq_id=None))
    assert "\n" not in line
    assert json.loads(line) == {
        "ts": "2030-03-17T17:46:40.250Z",
        "level": "WARNING",
        "logger": "backfill.worker.release",
        "message": "job 7\nfailed",
        "job_id": 7,
        "task": "send",
        "verdict": "retry",
        "dlq_id": None,
    }


def test_json_takes_any_value() -> None:
    line = JsonFormatter().format(record("odd", seconds=math.nan, thing=object, half="\ud800", level="mine"))
    value = json.loads(line)
    assert (value["seconds"], value["half"], value["level"]) == ("nan", "\ud800", "WARNING")


def test_a_traceback_is_part_of_the_record() -> None:
    try:
        int("inner")
    except ValueError:
        failed = record("it failed", exc_info=sys.exc_info())
    assert json.loads(JsonFormatter().format(failed))["traceback"].endswith(
        "ValueError: invalid literal for int() with base 10: 'inner'"
    )
    assert TextFormatter().format(failed).splitlines()[-1].startswith("ValueError: invalid")


def test_configure_sends_what_is_important_enough_to_stderr(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("json", "warning")
    logging.getLogger("some.module").info("quiet")
    logging.getLogger("some.module").warning("loud", extra={"job_id": 3})
    said = capsys.readouterr()
    assert said.out == ""
    assert [(line["message"], line["job_id"]) for line in map(json.loads, said.err.splitlines())] == [("loud", 3)]


@pytest.mark.parametrize(("log_format", "level", "says"), [("xml", "INFO", "'xml'"), ("text", "LOUD", "'LOUD'")])
def test_configure_refuses_what_is_not_there(root: logging.Logger, log_format: str, level: str, says: str) -> None:
    before = root.handlers[:]
    with pytest.raises(ConfigurationError, match=says):
        configure(log_format, level)
    assert root.handlers == before
