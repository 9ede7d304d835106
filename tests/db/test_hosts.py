import pytest

from backfill.db.hosts import Host, asks_for_kind, hosts_of, target

SECRET = "s3cr3t-p4ss"


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///jobs", ()),
        ("postgresql://u@a/jobs", (Host("a", None),)),
        ("postgresql://u:p@a:1,b,c:3/jobs", (Host("a", 1), Host("b", None), Host("c", 3))),
        ("postgresql://[::1]:5433,[fe80::1]/jobs", (Host("::1", 5433), Host("fe80::1", None))),
        ("postgresql://u@/jobs?host=/run/a,/run/b&port=1,2", (Host("/run/a", 1), Host("/run/b", 2))),
        ("postgresql://u@/jobs?host=a,b&port=7", (Host("a", 7), Host("b", 7))),
        ("postgresql://u@/jobs?host=a:1,b", (Host("a", 1), Host("b", None))),
        ("postgresql://u@%2Frun%2Fpg/jobs", (Host("/run/pg", None),)),
    ],
)
def test_the_hosts_of_a_url(url: str, hosts: tuple[Host, ...]) -> None:
    assert hosts_of(url) == hosts


@pytest.mark.parametrize(
    "url",
    ["postgresql://a:x/y", "postgresql://[::1/y", "postgresql://[::1]5/y", "postgresql:///y?host=a,b,c&port=1,2"],
)
def test_what_cannot_be_read(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        hosts_of(url)
    assert target(url) == "the database of the database URL"


def test_all_hosts_are_told_without_user_and_password() -> None:
    url = f"postgresql://someone:{SECRET}@one:1,[::2]:2,three/jobs?target_session_attrs=read-write"
    assert target(url) == "database 'jobs' at one:1, [::2]:2, three"


def test_whether_the_url_asks_for_a_kind_of_server() -> None:
    assert asks_for_kind("postgresql://a,b/x?target_session_attrs=any")
    assert not asks_for_kind("postgresql://a,b/x")
