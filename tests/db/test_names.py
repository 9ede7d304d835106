import pytest

from backfill.db import check_schema_name, quote_ident
from backfill.errors import ConfigurationError


@pytest.mark.parametrize("name", ["graphile_worker", 'od"d name', "x" * 63, "é" * 31, "select", "Ünicode $1 \\ '"])
async def test_a_name_that_postgresql_takes_is_taken(name: str) -> None:
    assert check_schema_name(name) is name


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("", "empty"),
        ("x" * 64, "64 bytes; PostgreSQL keeps only 63"),
        ("é" * 32, "64 bytes"),
        ("a\0b", "control characters"),
        ("a\nb", "control characters"),
        ("a\x7f", "control characters"),
        ("pg_mine", "begin with pg_"),
    ],
)
def test_a_name_that_postgresql_would_cut_or_refuse_is_refused(name: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check_schema_name(name)


def test_quotes_are_doubled() -> None:
    assert quote_ident('od"d name') == '"od""d name"'
