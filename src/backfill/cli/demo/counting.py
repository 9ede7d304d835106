"""Counting in helper processes, so that the parser keeps no worker waiting: it holds the interpreter's lock throughout.

This file is also the helpers' program; it uses nothing but the standard library. A helper reads paths from stdin, one a
line, and answers on stdout with pickles. It ends with its stdin, so none outlives the process that it works for, however
that one ends.
"""

import ast
import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import tokenize
import traceback
import warnings

Counts = tuple[int, int, int]
_LOOK = 0.1  # seconds after which a wait for a helper sees that one was killed


def count(path: str) -> Counts:
    """The lines, functions and classes of a Python file.

    Raises:
        SyntaxError, ValueError: It is no Python.
    """
    with tokenize.open(path) as file:
        text = file.read()
    nodes = list(ast.walk(ast.parse(text, path)))
    functions = sum(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) for node in nodes)
    return len(text.splitlines()), functions, sum(isinstance(node, ast.ClassDef) for node in nodes)


class Helpers:
    """A few helper processes, started when they are first needed. For use by threads."""

    def __init__(self) -> None:
        self._idle: queue.LifoQueue[subprocess.Popen[bytes]] = queue.LifoQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()

    def count(self, path: str) -> Counts:
        """``count`` in a helper.

        Raises:
            OSError: There is no such file, or no helper can be started; or one was killed.
            SyntaxError, ValueError: The file is no Python.
        """
        helper = self._take()
        try:
            assert helper.stdin is not None  # noqa: S101 - both are pipes
            assert helper.stdout is not None  # noqa: S101
            helper.stdin.write(path.encode() + b"\n")
            helper.stdin.flush()
            answer = pickle.load(helper.stdout)  # noqa: S301 - from our own process
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self._forget(helper)
            raise ConnectionError("a helper process of the demo was killed") from error
        self._idle.put(helper)
        if isinstance(answer, Exception):
            raise answer
        counts: Counts = answer
        return counts

    def close(self) -> None:
        """Have the helpers end, and wait until they have."""
        for helper in list(self._all):
            self._forget(helper)

    def _take(self) -> "subprocess.Popen[bytes]":
        while True:
            with self._lock:
                if self._idle.empty() and len(self._all) < (os.cpu_count() or 1):
                    helper = subprocess.Popen(  # noqa: S603 - this very file
                        [sys.executable, "-I", "-S", __file__],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        process_group=0,  # a terminal's Ctrl-C is not for it
                    )
                    self._all.append(helper)
                    return helper
            with contextlib.suppress(queue.Empty):
                return self._idle.get(timeout=_LOOK)

    def _forget(self, helper: "subprocess.Popen[bytes]") -> None:
        with self._lock:
            self._all.remove(helper)
        helper.communicate()


def help_out() -> None:
    """The life of a helper."""
    warnings.simplefilter("ignore")  # the parser's, about other people's code
    for line in sys.stdin.buffer:
        answer: Counts | Exception
        try:
            answer = count(line.rstrip(b"\n").decode())
        except Exception as error:  # noqa: BLE001 - raised by the one who asked
            error.add_note(f"In a helper process:\n{traceback.format_exc()}")
            answer = error
        sys.stdout.buffer.write(pickle.dumps(answer))
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    help_out()
