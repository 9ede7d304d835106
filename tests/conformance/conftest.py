"""Tests here carry the numbers of the contracts' conformance lists (C-…, X-…, R-…); fixtures are the worker tests'."""

# Fixtures are found by their names in this module.
from tests.interop.conftest import node_packages
from tests.worker.conftest import make_claims, make_config, make_runner, other, run_worker, sql, until

__all__ = ["make_claims", "make_config", "make_runner", "node_packages", "other", "run_worker", "sql", "until"]
