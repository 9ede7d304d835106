import pytest

from backfill.sql import Statement, UnknownStatementError, parse, quote_ident, statement, statements, text, with_schema
from backfill.sql.fragments import expand, fragments_of

GOOD = """\
-- Notes on the file.

-- name: first_one
-- What it does,
-- in two lines.
-- takes: job_id int8, names text[]
-- takes: at timestamptz
-- gives: id int8
-- gives: payload text
select jobs.id, jobs.payload::text  -- as text
from graphile_worker._private_jobs as jobs

where jobs.id = $1;

-- name: second
-- Gives nothing.
-- gives: nothing
delete from graphile_worker._private_tasks
"""


def test_a_file_holds_several_statements_with_their_declarations() -> None:
    first, second = parse(GOOD, "some.sql")
    assert first == Statement(
        name="first_one",
        doc="What it does,\nin two lines.",
        takes=(("job_id", "int8"), ("names", "text[]"), ("at", "timestamptz")),
        gives=(("id", "int8"), ("payload", "text")),
        sql=(
            "select jobs.id, jobs.payload::text  -- as text\nfrom graphile_worker._private_jobs as jobs\n\n"
            "where jobs.id = $1"
        ),
        file="some.sql",
    )
    assert (second.name, second.takes, second.gives) == ("second", (), ())


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("select 1\n-- name: x\n", r"some\.sql:1: SQL before the first"),
        ("\n-- name: Not Good\n-- d\n-- gives: nothing\nselect", r"some\.sql:2: 'Not Good' is no name"),
        ("-- name: x\n-- Doc.\n-- gives: nothing\n", r"some\.sql:1: statement x has no SQL"),
        ("-- name: x\n-- gives: nothing\nselect 1", r"some\.sql:1: statement x has no comment"),
        ("-- name: x\n-- Doc.\nselect 1", r"some\.sql:1: statement x does not say what it gives"),
        ("-- name: x\n-- Doc.\n-- gives: id\nselect 1", r"some\.sql:1: statement x: 'id' in its 'gives'"),
        ("-- name: x\n-- Doc.\n-- takes: a int4 b\n-- gives: nothing\nselect 1", r"'a int4 b' in its 'takes'"),
    ],
)
def test_a_malformed_file_is_refused_with_file_and_line(content: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse(content, "some.sql")


def test_the_schema_is_put_in_everywhere_but_in_strings_and_comments_go() -> None:
    sql = """
-- all of graphile_worker
select 'graphile_worker.x', 'it''s -- no comment', "graphile_worker", xgraphile_worker.y, graphile_worker_2.z
from graphile_worker.jobs /* and
graphile_worker */ where a = b -- tail
"""
    assert with_schema(sql, 'od"d name') == (
        """select 'graphile_worker.x', 'it''s -- no comment', "graphile_worker", xgraphile_worker.y, graphile_worker_2.z\n"""
        'from "od""d name".jobs   where a = b'
    )


def test_comments_can_be_kept() -> None:
    sql = "-- graphile_worker's\nselect graphile_worker.f();"
    assert with_schema(sql, "s", comments=True) == '-- graphile_worker\'s\nselect "s".f();'


@pytest.mark.parametrize("schema", ["graphile_worker", "jobs", 'od"d name', "\\1", "$1"])
def test_the_text_of_a_statement_names_the_quoted_schema(schema: str) -> None:
    assert f"from {quote_ident(schema)}.migrations" in text("schema_revision", schema)


def test_the_text_is_made_once() -> None:
    assert text("schema_revision", "cached") is text("schema_revision", "cached")


def test_an_unknown_statement_is_an_error_that_suggests_another() -> None:
    with pytest.raises(
        UnknownStatementError, match="no SQL statement called 'schema_revison'; did you mean schema_revision"
    ):
        text("schema_revison", "s")
    with pytest.raises(KeyError):
        statement("qqqqqqqqqqqqqqq")


def test_statements_are_found_by_their_names() -> None:
    assert all(name == found.name for name, found in statements().items())
    assert statement("schema_revision").file == "schema.sql"


def test_fragments_are_put_where_they_are_included() -> None:
    content = """-- fragment: one
-- A rule.
a = 1

-- fragment: both
-- include: one
, b = 2

-- name: x
update t set
-- include: both
"""
    assert expand(content, "f").split("\n")[-5:-1] == ["update t set", "-- A rule.", "a = 1", ", b = 2"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("-- include: none", "no fragment called 'none'"),
        (
            "-- fragment: a\n-- include: b\n\n-- fragment: b\n-- include: a\n\n-- name: x\n-- include: a\n",
            "includes itself",
        ),
    ],
)
def test_an_include_that_leads_nowhere_is_refused(content: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        expand(content, "f")


def test_fragments_of_other_files_can_be_included() -> None:
    fragments = fragments_of("-- fragment: two\n2\n") | fragments_of("-- fragment: one\n-- include: two\n")
    assert expand("-- name: x\nselect\n-- include: one\n", "f", fragments) == "-- name: x\nselect\n2\n"


VARIED = """\
-- fragment: rest
 where a > 0
   --+ and b = any($1)

-- name: plain
-- variant: picky
-- What it does.
--+ -- takes: bs int4[]
-- gives: a int4
select a
  from t
-- include: rest

-- name: other
-- Another.
-- gives: a int4
select a from u
"""


def test_a_variant_has_the_lines_that_the_plain_statement_has_not() -> None:
    plain, picky, other = parse(expand(VARIED, "some.sql"), "some.sql")
    assert (plain.name, plain.takes, plain.doc) == ("plain", (), "What it does.")
    assert plain.sql == "select a\n  from t\n where a > 0"
    assert (picky.name, picky.takes, picky.gives) == ("picky", (("bs", "int4[]"),), plain.gives)
    assert picky.sql == "select a\n  from t\n where a > 0\n   and b = any($1)"
    assert (other.name, other.sql) == ("other", "select a from u")
