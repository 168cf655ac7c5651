"""`RepoRef`: every form that it reads, what it prints, and what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isohub.errors import RefError
from isohub.refs import RepoRef

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "ref", "commit"),
    [
        ("pytorch/vision", None, None),
        ("pytorch/vision:v0.10.0", "v0.10.0", None),
        ("pytorch/vision:feat/x", "feat/x", None),
        ("pytorch/vision:a@b", "a@b", None),
        (f"pytorch/vision:{COMMIT}", COMMIT, None),
        (f"pytorch/vision@{COMMIT}", None, COMMIT),
        (f"pytorch/vision@{COMMIT.upper()}", None, COMMIT),
    ],
)
def test_owner_name_and_ref(text: str, ref: str | None, commit: str | None) -> None:
    """`owner/name` may be followed by a ref after a colon, or by a commit after an at sign."""
    parsed = RepoRef.parse(text)

    assert (parsed.kind, parsed.host, parsed.owner, parsed.name) == ("hub", "github.com", "pytorch", "vision")
    assert (parsed.ref, parsed.commit) == (ref, commit)
    assert parsed.url == "https://github.com/pytorch/vision"


def test_source_chooses_the_host() -> None:
    """`source` names the host of a plain `owner/name`, in any case of letters."""
    assert RepoRef.parse("a/b", source="GitLab").url == "https://gitlab.com/a/b"
    assert RepoRef.parse("a/b", source="GITHUB") == RepoRef.parse("a/b")


@pytest.mark.parametrize(
    "text",
    ["nor", "", "a/b/c", "a/b:c:d", "a/b:", "a/b@abc1234", "a/b c", "/", "../b", "a/..", "a/b\x00", "a/b:x\ny"],
)
def test_bad_texts(text: str) -> None:
    """A text that is none of the forms is refused with the text and the forms allowed."""
    with pytest.raises(RefError) as caught:
        RepoRef.parse(text)

    if text not in {"/", "../b", "a/.."}:
        assert repr(text) in str(caught.value)
        assert "owner/name:ref" in str(caught.value)
        assert caught.value.text == text


def test_existing_directory_gets_a_hint(tmp_path: Path) -> None:
    """A bad text that is a folder asks whether `source="local"` was meant."""
    with pytest.raises(RefError, match='did you mean source="local"'):
        RepoRef.parse(str(tmp_path))


@pytest.mark.parametrize("value", [3, None, b"a/b", ["a/b"]])
def test_neither_text_nor_path(value: object) -> None:
    """What is neither a text nor a path is a TypeError."""
    with pytest.raises(TypeError, match="text or a path"):
        RepoRef.parse(value)  # type: ignore[arg-type]


def test_unknown_source() -> None:
    """An unknown source is refused with torch.hub's words."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        RepoRef.parse("a/b", source="nowhere")

    names = '"github" | "gitlab" | "gitee" | "bitbucket" | "codeberg" | "local"'
    assert str(caught.value) == f'Unknown source: "nowhere". Allowed values: {names}.'


def test_unknown_protocol() -> None:
    """There are two protocols, in any case of letters."""
    with pytest.raises(RefError, match=r'Unknown protocol: "FTP". Allowed values: "HTTPS" | "SSH"\.'):
        RepoRef.parse("a/b", protocol="FTP")


@pytest.mark.parametrize(
    ("git_host", "host", "url"),
    [
        ("git.corp", "git.corp", "https://git.corp/o/n"),
        ("Git.Corp:8443", "git.corp:8443", "https://git.corp:8443/o/n"),
        ("https://git.corp/", "git.corp", "https://git.corp/o/n"),
        ("localhost:3000", "localhost:3000", "https://localhost:3000/o/n"),
        ("http://127.0.0.1:3000", "127.0.0.1:3000", "http://127.0.0.1:3000/o/n"),
        ("[::1]:3000", "[::1]:3000", "https://[::1]:3000/o/n"),
    ],
)
def test_git_host(git_host: str, host: str, url: str) -> None:
    """`git_host` names another server, with a port or scheme if need be; it is spoken to by https."""
    parsed = RepoRef.parse("o/n:v1", git_host=git_host)

    assert (parsed.kind, parsed.host, parsed.url, parsed.ref) == ("hub", host, url, "v1")


@pytest.mark.parametrize(
    "git_host", ["http://git.corp", "ssh://git.corp", "git.corp/path", "me@git.corp", "a b", "host:99999", "-o"]
)
def test_bad_git_hosts(git_host: str) -> None:
    """What is no server's name is refused, and so is plain http to another machine."""
    with pytest.raises(RefError):
        RepoRef.parse("o/n", git_host=git_host)


def test_ssh_protocol() -> None:
    """With `protocol="SSH"` a plain name is read by ssh, as the user `git`."""
    parsed = RepoRef.parse("o/n:v1", protocol="ssh", git_host="git.corp:2222")

    assert (parsed.kind, parsed.url, parsed.ref) == ("git", "ssh://git@git.corp:2222/o/n.git", "v1")
    assert parsed == RepoRef.parse("git+ssh://git@git.corp:2222/o/n.git@v1")
    assert parsed.identity == RepoRef.parse("o/n", git_host="git.corp:2222").identity


@pytest.mark.parametrize(
    ("text", "url", "ref"),
    [
        ("git@host:o/n.git", "ssh://git@host/o/n.git", None),
        ("git@host:o/n.git@feat/x", "ssh://git@host/o/n.git", "feat/x"),
        ("git+git@host:o/n@v1#subdirectory=x", "ssh://git@host/o/n", "v1"),
        ("me@host:models/n.git", "ssh://me@host/~/models/n.git", None),
        ("me@host:/srv/n.git", "ssh://me@host/srv/n.git", None),
    ],
)
def test_scp_form(text: str, url: str, ref: str | None) -> None:
    """The short form of ssh's is read as the URL that it stands for; a person's paths count from their home."""
    parsed = RepoRef.parse(text)

    assert (parsed.kind, parsed.host, parsed.url, parsed.ref) == ("git", "host", url, ref)
    assert RepoRef.parse(str(parsed)) == parsed


def test_commit() -> None:
    """`commit` goes before the ref of the text, and may be short."""
    assert RepoRef.parse("a/b:main", commit=COMMIT.upper()) == RepoRef.parse(f"a/b@{COMMIT}")
    assert RepoRef.parse("git+https://h/a/b@main", commit=COMMIT[:8]).ref == COMMIT[:8]
    for bad in ("xyz", "abc", ""):
        with pytest.raises(RefError, match="hexadecimal"):
            RepoRef.parse("a/b", commit=bad)


def test_a_folder_has_no_commit(tmp_path: Path) -> None:
    """A commit cannot be asked of a folder, which is used as it is."""
    with pytest.raises(RefError, match="used as it is"):
        RepoRef.parse(tmp_path, commit=COMMIT)


def test_groups_are_gitlabs() -> None:
    """On GitLab, and on servers of one's own, several groups may stand before a name."""
    assert RepoRef.parse("g/s/n:v1", source="gitlab").owner == "g/s"
    assert RepoRef.parse("g/s/n", git_host="git.corp").owner == "g/s"
    for source in ("github", "bitbucket", "gitee", "codeberg"):
        with pytest.raises(RefError):
            RepoRef.parse("g/s/n", source=source)


def test_a_text_may_name_its_server() -> None:
    """A server may stand before owner and name, as it is copied from a browser or printed by a ref."""
    assert RepoRef.parse("https://github.com/a/b.git") == RepoRef.parse("a/b")
    assert RepoRef.parse("git.corp:8443/a/b:v1").url == "https://git.corp:8443/a/b"
    assert RepoRef.parse("git.corp/a/b", source="gitlab", git_host="other").host == "git.corp"
    with pytest.raises(RefError, match="plain http"):
        RepoRef.parse("http://git.corp/a/b")


@pytest.mark.parametrize("spelling", ["{0}", "{0}/", "{0}/../models", ".", "./", "../models"])
def test_local_spellings(spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder is the same repository however its path is spelt, as a text or as a path."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.chdir(folder)
    text = spelling.format(folder)

    parsed = RepoRef.parse(text, source="local")

    assert parsed == RepoRef.parse(Path(text)) == RepoRef.parse(folder)
    assert parsed.is_local_tree
    assert (parsed.kind, parsed.host, parsed.name, parsed.url) == ("local", "", "models", str(folder))


def test_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` is expanded in the path of a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()

    assert RepoRef.parse("~/models", source="local").url == str(tmp_path / "models")
    assert RepoRef.parse(Path("~/models")).url == str(tmp_path / "models")


@pytest.mark.parametrize("text", ["", "nowhere", "file.txt", "x" * 5000, "a\0b"])
def test_missing_folder(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder must exist, and be one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")

    with pytest.raises(RefError):
        RepoRef.parse(text, source="local")


def test_git_file_url(tmp_path: Path) -> None:
    """`git+file:` takes owner and name from the path, and wins over `source`."""
    parsed = RepoRef.parse("git+file:///srv/models.git@feat/x#subdirectory=hub/v2", source="local")

    assert parsed == RepoRef(
        kind="git",
        host="",
        owner="srv",
        name="models",
        ref="feat/x",
        url="file:///srv/models.git",
        subdirectory="hub/v2",
    )
    assert RepoRef.parse(f"git+file://localhost/models@{COMMIT}").commit == COMMIT
    assert RepoRef.parse("git+file:///models").owner == "local"
    assert RepoRef.parse("git+file:///srv/models/.git").name == "models"


@pytest.mark.parametrize("ref", [None, "v1", "feat/x", "user@2", "a@b/c@d"])
@pytest.mark.parametrize("name", ["models", "mo@dels", "models@v1", "with space#%25"])
def test_at_signs_in_path_and_ref(tmp_path: Path, name: str, ref: str | None) -> None:
    """The at sign before the ref is told from those in the path by what exists on disk."""
    (tmp_path / "me").mkdir()
    repository = tmp_path / "me@work" / name
    (repository / ".git").mkdir(parents=True)
    ending = "" if ref is None else f"@{ref}"

    raw = str(repository).replace("%", "%25").replace("#", "%23")
    parsed = RepoRef.parse(f"git+file://{raw}{ending}")

    assert parsed.ref == ref
    assert parsed.name == name
    assert parsed == RepoRef.parse(f"git+{repository.as_uri()}{ending}")
    assert parsed == RepoRef.parse(str(parsed))


def test_at_sign_where_nothing_exists() -> None:
    """The first at sign separates the ref if no split leads to a folder."""
    parsed = RepoRef.parse("git+file:///nowhere/models@a@b")

    assert (parsed.url, parsed.ref) == ("file:///nowhere/models", "a@b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("git+https://host/o/n.git@v1", ("host", "o", "n", "v1", "https://host/o/n.git")),
        ("git+https://Host:8443/g/s/n/", ("host:8443", "g/s", "n", None, "https://Host:8443/g/s/n")),
        ("git+ssh://git@host/o/n.git@f/x", ("host", "o", "n", "f/x", "ssh://git@host/o/n.git")),
    ],
)
def test_git_urls_of_hosts(text: str, expected: tuple[str | None, ...]) -> None:
    """URLs of https and ssh are read like pip's."""
    parsed = RepoRef.parse(text)

    assert (parsed.host, parsed.owner, parsed.name, parsed.ref, parsed.url) == expected
    assert parsed.kind == "git"


@pytest.mark.parametrize(
    "text",
    [
        "git+",
        "git+file://srv/models",
        "git+file:models",
        "git+file:///srv/models@",
        "git+file:///srv/models#egg=x",
        "git+file:///srv/models#subdirectory=",
        "git+file:///srv/models#subdirectory=../x",
        "git+file:///srv/models#subdirectory=/x",
        "git+file:///srv/mo%00dels",
        "git+file:///",
        "git+http://host/o/n",
        "git+ext::sh -c id",
        "git+https:///o/n",
        "git+https://host",
        "git+https://host/o/n@",
        "git+https://host/../n",
        "file://host/x",
    ],
)
def test_bad_urls(text: str) -> None:
    """A URL of another scheme, without a host or path, or with a path that leads out, is refused."""
    with pytest.raises(RefError):
        RepoRef.parse(text)


@pytest.mark.parametrize("text", ["git+https://user:secret@host/o/n", "git+http://secret@host/o/n"])
def test_passwords_are_refused_and_not_shown(text: str) -> None:
    """A password or token in a URL is refused by an error that does not repeat it."""
    with pytest.raises(RefError) as caught:
        RepoRef.parse(text)

    assert "secret" not in str(caught.value) + caught.value.text


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("a/b", "github"),
        ("a/b", "gitlab"),
        ("a/b:feat/x", "gitlab"),
        (f"a/b@{COMMIT}", "github"),
        ("a/b:fix#12#subdirectory=x/y", "github"),
        ("g/s/n:v1", "gitlab"),
        ("a/b", "bitbucket"),
        ("git.corp:8443/g/s/n:v1#subdirectory=x", "github"),
        ("http://localhost:3000/a/b@" + COMMIT, "github"),
        ("me@host:~/x.git@v1", "github"),
        ("git+https://host:1/g/s/n.git@v1#subdirectory=a b", "github"),
        ("git+ssh://git@host/o/n.git@x@y", "github"),
        ("git+file:///nowhere/n.git@feat/é", "github"),
        (f"git+file:///nowhere/n.git@{COMMIT}", "github"),
    ],
)
def test_prints_what_parses_back(text: str, source: str) -> None:
    """The printed text parses back to an equal value, whatever source it was first given with."""
    parsed = RepoRef.parse(text, source=source)

    assert RepoRef.parse(str(parsed)) == parsed
    assert hash(RepoRef.parse(str(parsed))) == hash(parsed)


def test_folder_prints_what_parses_back(tmp_path: Path) -> None:
    """A folder prints as a file URL, which parses back whatever characters are in its name."""
    folder = tmp_path / os.fsdecode(b"a@b#c d%41\xff")
    folder.mkdir()
    parsed = RepoRef.parse(folder)

    assert RepoRef.parse(str(parsed)) == parsed
    assert RepoRef.parse(f"{parsed}#subdirectory=x").subdirectory == "x"


def test_labels(tmp_path: Path) -> None:
    """A label is short: owner, name, and ref or the beginning of the commit."""
    (tmp_path / "net").mkdir()

    assert RepoRef.parse("git+file:///srv/models.git@v1").label == "srv/models:v1"
    assert RepoRef.parse(f"a/b@{COMMIT}").label == "a/b@0123456"
    assert RepoRef.parse("git+file:///srv/models#subdirectory=x").label == "srv/models#x"
    assert RepoRef.parse(tmp_path / "net").label == "net"


def test_hub_folder_names() -> None:
    """The names are those of torch.hub's folders, with every slash as an underscore."""
    assert RepoRef.parse("a/b:feat/x").hub_folder_names == ("a_b_feat_x", "a_b_main", "a_b_master")
    assert RepoRef.parse("a/b:main").hub_folder_names == ("a_b_main", "a_b_master")
    assert RepoRef.parse("git+https://h/g/s/n").hub_folder_names == ("g_s_n_main", "g_s_n_master")


def test_ref_and_commit_exclude_each_other() -> None:
    """A value with both a ref and a commit cannot be made."""
    with pytest.raises(RefError, match="Both"):
        RepoRef(kind="hub", host="h", owner="o", name="n", ref="v1", commit=COMMIT, url="https://h/o/n")
