"""Putting a schema's name into SQL that was written for ``graphile_worker``."""

import re

# Everything a word may hide in comes before the word itself, so that the alternative that matches first decides.
_TOKEN = re.compile(
    r"""
      (?P<string>   '(?:[^']|'')*' )
    | (?P<quoted>   "(?:[^"]|"")*" )
    | (?P<comment>  --[^\n]* | /\*.*?\*/ )
    | (?P<schema>   (?<![\w$]) graphile_worker (?![\w$]) )
    """,
    re.VERBOSE | re.DOTALL,
)


def quote_ident(name: str) -> str:
    """The name as an SQL identifier, always quoted: ``od"d`` becomes ``"od""d"``."""
    return '"' + name.replace('"', '""') + '"'


def with_schema(sql: str, schema: str, *, comments: bool = False) -> str:
    """The SQL with each word ``graphile_worker`` replaced by the quoted name of the schema.

    Words inside string literals stay; the body of a function (between dollar quotes) is code, and is translated too.

    Args:
        sql: SQL that names its schema ``graphile_worker``.
        schema: The schema's name, unquoted.
        comments: Keep the comments (they are left alone); else they are dropped, with the lines they leave empty.
    """
    quoted = quote_ident(schema)

    def replace(match: re.Match[str]) -> str:
        if match.lastgroup == "schema":
            return quoted
        if match.lastgroup == "comment" and not comments:
            return " " if match[0].startswith("/*") else ""
        return match[0]

    replaced = _TOKEN.sub(replace, sql)
    if comments:
        return replaced
    return "\n".join(line.rstrip() for line in replaced.splitlines() if line.strip())
