import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from backfill import TaskHandler, WorkerConfig, WorkerRunner, task
from backfill.cli.load import load
from backfill.errors import ConfigurationError
from backfill.worker import WorkerRunnerBuilder

CONFIG = WorkerConfig(database_url="postgresql:///none")


@task("one")
async def one(payload: Any) -> None: ...


@task("two")
async def two(payload: Any) -> None: ...


@task("one")
async def other_one(payload: Any) -> None: ...


class Base(TaskHandler):
    """For others to derive from."""


@dataclass
class Three(Base):
    IDENTIFIER = "three"

    async def run(self, ctx: Any) -> None: ...


class Incomplete(TaskHandler):
    """Nobody derives from it, and it has no IDENTIFIER."""


Give = Callable[..., None]


@pytest.fixture
def give(monkeypatch: pytest.MonkeyPatch) -> Give:
    """A function that puts a module `mine` with these attributes in place."""
    monkeypatch.setattr(sys, "path", sys.path[:])

    def make(name: str = "mine", **attributes: Any) -> None:
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)

    return make


def builder(config: WorkerConfig) -> WorkerRunnerBuilder:
    return WorkerRunner.builder(config).define_job(two)


def test_a_module_stands_for_all_its_tasks(give: Give) -> None:
    give(one=one, again=one, Three=Three, Base=Base, TaskHandler=TaskHandler, text="text", task=task)
    assert load(["mine"]).handlers == {"one": one, "three": Three}


@pytest.mark.parametrize("given", [one, [one], (one,), {one}])
def test_an_object_is_a_task_or_a_collection_of_them(give: Give, given: Any) -> None:
    give(thing=given, two=two)
    assert load(["mine:thing"]).handlers == {"one": one}


def test_several_targets_add_up_and_the_same_object_may_come_twice(give: Give) -> None:
    give(one=one)
    give("more", two=two, also_one=one)
    assert load(["mine", "more", "mine:one"]).handlers == {"one": one, "two": two}


def test_one_identifier_for_two_tasks_names_both_places(give: Give) -> None:
    give(one=one, other=other_one)
    with pytest.raises(ConfigurationError) as caught:
        load(["mine"])
    assert "two tasks are called 'one'" in str(caught.value)
    assert one.options.where in str(caught.value)
    assert other_one.options.where in str(caught.value)


def test_a_function_makes_the_builder_of_the_configuration(give: Give) -> None:
    give(make=builder, one=one)
    made = load(["mine:make", "mine:one"]).builder(lambda: CONFIG)
    assert made.config is CONFIG
    with pytest.raises(ConfigurationError, match="'one'"):
        made.define_job(other_one)
    with pytest.raises(ConfigurationError, match="'two'"):
        made.define_job(task("two")(_another))


async def _another(payload: Any) -> None: ...


def test_a_ready_builder_keeps_its_configuration(give: Give) -> None:
    ready = builder(CONFIG)
    give(ready=ready)
    assert load(["mine:ready"]).builder(pytest.fail) is ready


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mine:absent", "has nothing called 'absent'"),
        ("mine:number", "name a task, a list of tasks"),
        ("mine:mixed", "which is no task"),
        ("mine:empty", "is empty"),
        ("mine:Incomplete", "has no IDENTIFIER"),
        ("mine:Plain", "name a task, a list of tasks"),
        ("nowhere_to_be_found", "no module 'nowhere_to_be_found'"),
        ("mine.below", "no module 'mine.below'"),
        ("mine.py", "did you mean mine?"),
        ("folder/mine.py", "did you mean folder.mine?"),
        ("./mine", "is no module name"),
        ("", "is no module name"),
    ],
)
def test_what_cannot_be_loaded_is_told(give: Give, target: str, says: str) -> None:
    give(number=7, mixed=[one, 7], empty=[], Incomplete=Incomplete, Plain=object, __path__=[])
    with pytest.raises(ConfigurationError) as caught:
        load([target])
    assert says in str(caught.value)


def test_a_module_without_tasks_and_one_with_an_incomplete_handler(give: Give) -> None:
    give(text="no task here")
    with pytest.raises(ConfigurationError, match="has no tasks"):
        load(["mine"])
    give(Incomplete=Incomplete)
    with pytest.raises(ConfigurationError, match="has no IDENTIFIER"):
        load(["mine"])


def test_two_builders_and_a_function_that_makes_none(give: Give) -> None:
    give(make=builder, ready=builder(CONFIG), wrong=lambda _: "no builder")
    with pytest.raises(ConfigurationError, match="mine:make and mine:ready"):
        load(["mine:make", "mine:ready"])
    with pytest.raises(ConfigurationError, match="mine:wrong returned 'no builder'"):
        load(["mine:wrong"]).builder(lambda: CONFIG)


def test_the_current_folder_comes_first(give: Give, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    name = "found_in_the_current_folder"
    (tmp_path / f"{name}.py").write_text("from backfill import task\n@task\nasync def here(payload): ...\n")
    try:
        assert list(load([name]).handlers) == ["here"]
    finally:
        sys.modules.pop(name, None)
