"""Servers of every make, ssh, submodules and LFS; private repositories, tokens and logins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from isohub.errors import UnreachableError
from isohub.hub import https_host
from isohub.hub.cache import Cache
from isohub.hub.fetch import fetch
from isohub.hub.resolve import resolve
from isohub.refs import RepoRef
from tests.helpers.githost import GitHost
from tests.helpers.repos import git, make_repo
from tests.hosts.conftest import load, version

# ------------------------------------------------------------------------------------------ other servers


@pytest.mark.parametrize("make", ["github", "gitlab", "bitbucket", "gitee"])
def test_servers_of_every_make(repo: Path, cache: Cache, no_git: None, make: str) -> None:
    """A server whose make its name does not tell is loaded from without git, whichever archives it has."""
    with GitHost((make,)) as host:
        host.add("owner/name", repo)

        assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"


def test_archive_urls_of_known_servers() -> None:
    """The well-known servers, and those with their names in theirs, have one URL for an archive each."""
    commit = "1" * 40

    def urls(text: str, **more: str) -> list[str]:
        return https_host.archive_urls(RepoRef.parse(text, **more), commit)

    assert urls("o/n") == [f"https://github.com/o/n/archive/{commit}.zip"]
    assert urls("g/s/n", source="gitlab") == [f"https://gitlab.com/g/s/n/-/archive/{commit}/n-{commit}.zip"]
    assert urls("o/n", git_host="gitlab.corp:8443") == [
        f"https://gitlab.corp:8443/o/n/-/archive/{commit}/n-{commit}.zip"
    ]
    assert urls("o/n", source="bitbucket") == [f"https://bitbucket.org/o/n/get/{commit}.zip"]
    assert urls("o/n", source="gitee") == [f"https://gitee.com/o/n/repository/archive/{commit}.zip"]
    assert urls("git+https://codeberg.org/o/n.git") == [f"https://codeberg.org/o/n/archive/{commit}.zip"]
    assert urls("o/n", git_host="git.corp")[0] == f"https://git.corp/o/n/archive/{commit}.zip"
    assert len(urls("o/n", git_host="git.corp")) == 4


def test_groups_within_groups(repo: Path, cache: Cache) -> None:
    """A repository may lie several groups deep on a server like GitLab."""
    with GitHost(("gitlab",)) as host:
        host.add("group/sub/name", repo)

        assert version(load(host, "group/sub/name:v1", cache)) == "VERSION = 1"


def test_git_takes_over_where_there_is_no_archive(repo: Path, cache: Cache) -> None:
    """A server without archives is fetched from by git: by name, and by a git URL without a question for archives."""
    with GitHost(()) as host:
        host.add("owner/name", repo)

        assert version(load(host, "owner/name:v2", cache)) == "VERSION = 2"
        host.forget()
        assert (
            version(fetch(resolve(RepoRef.parse(f"git+{host.url}/owner/name.git@v1"), cache), cache)) == "VERSION = 1"
        )
        assert host.count("archive") == 0


def test_submodules_come_by_git(host: GitHost, tmp_path: Path, cache: Cache) -> None:
    """A repository with submodules, of which an archive has nothing, is fetched by git."""
    make_repo(tmp_path / "part", {"v1": {"part.py": "PART = 1\n"}})
    host.add("owner/part", tmp_path / "part")
    whole = make_repo(tmp_path / "whole", {"v1": {"hubconf.py": "import part\n"}})
    git(whole, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "part"), "part")
    git(whole, "config", "--file", ".gitmodules", "submodule.part.url", "../part.git")
    git(whole, "commit", "--quiet", "--all", "--message", "with submodule")
    host.add("owner/whole", whole)

    checkout = load(host, "owner/whole", cache)

    assert (checkout.files / "part" / "part.py").read_text() == "PART = 1\n"


def test_submodules_without_git_are_told_of(host: GitHost, tmp_path: Path, cache: Cache, no_git: None) -> None:
    """Without git the folders of submodules are empty, and a warning names them."""
    make_repo(tmp_path / "part", {"v1": {"part.py": "PART = 1\n"}})
    whole = make_repo(tmp_path / "whole", {"v1": {"hubconf.py": "import part\n"}})
    git(whole, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "part"), "my part")
    git(whole, "commit", "--quiet", "--all", "--message", "with submodule")
    host.add("owner/whole", whole)

    with pytest.warns(UserWarning, match=r"owner/whole has submodules, which are not fetched.*: 'my part'$"):
        load(host, "owner/whole", cache)


def test_a_submodule_cannot_reach_into_this_machine(host: GitHost, tmp_path: Path, cache: Cache) -> None:
    """A repository of a server cannot have a folder of this machine as its submodule."""
    make_repo(tmp_path / "secret", {"v1": {"secret.py": "SECRET = 1\n"}})
    whole = make_repo(tmp_path / "whole", {"v1": {"hubconf.py": ""}})
    git(whole, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(tmp_path / "secret"), "part")
    git(whole, "commit", "--quiet", "--all", "--message", "with submodule")
    host.add("owner/whole", whole)

    with pytest.warns(UserWarning, match="submodules"):
        checkout = load(host, "owner/whole", cache)

    assert not list(checkout.files.rglob("secret.py"))


def test_subdirectory(host: GitHost, tmp_path: Path, cache: Cache) -> None:
    """`#subdirectory=` names the folder with hubconf.py, in an archive too."""
    host.add("owner/deep", make_repo(tmp_path / "deep", {"v1": {"a/b/hubconf.py": "VERSION = 'deep'\n"}}))

    assert version(load(host, "owner/deep:v1#subdirectory=a/b", cache)) == "VERSION = 'deep'"


def test_ssh(repo: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind ssh, refs, history and files are read by git and the user's own ssh; a known ref needs none of it."""
    script = tmp_path / "ssh"  # as git's own tests have it: the "other machine" is this one
    script.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\nfor command; do :; done\nexec sh -c "$command"\n')
    script.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(script))
    commit = git(repo, "rev-parse", "v2")
    git(repo, "tag", "--delete", "v2")

    for text in (f"git@models.corp:{repo}@v1", f"git+ssh://git@models.corp:22{repo}@v1"):
        assert version(fetch(resolve(RepoRef.parse(text), cache), cache)) == "VERSION = 1"
    ref = RepoRef.parse(f"ssh://git@models.corp{repo}".replace("ssh://", "git+ssh://"), commit=commit[:10])
    assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 2"
    asked = (tmp_path / "asked").read_text()
    assert version(fetch(resolve(ref, cache), cache)) == "VERSION = 2"

    assert "git@models.corp git-upload-pack" in asked
    assert (tmp_path / "asked").read_text() == asked


def test_ssh_that_does_not_answer(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that ssh cannot reach is unreachable, in ssh's own words."""
    script = tmp_path / "ssh"
    script.write_text('#!/bin/sh\necho "ssh: connect to host models.corp port 22: Connection refused" >&2; exit 255\n')
    script.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(script))

    with pytest.raises(
        UnreachableError, match=r"(?s)git ls-remote failed: .*Connection refused.*the ref 'v1' .* is not in the cache"
    ):
        resolve(RepoRef.parse("git@models.corp:owner/name.git@v1"), cache)


def test_git_lfs(host: GitHost, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `git lfs` is installed, a pointer is replaced by what it stands for; what it cannot bring is told of."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 7\n"
    files = {"hubconf.py": "", "w/good.pt": pointer.format("a" * 64), "bad.pt": pointer.format("b" * 64)}
    host.add("owner/large", make_repo(tmp_path / "large", {"v1": files}))
    program = tmp_path / "bin" / "git-lfs"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\ntest "$1" = smudge || exit 2\ngrep -q aaaa && printf WEIGHTS\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    with pytest.warns(UserWarning, match=r"Git LFS.*: 'bad.pt'$"):
        checkout = load(host, "owner/large", cache)

    assert (checkout.files / "w" / "good.pt").read_text() == "WEIGHTS"
    assert (checkout.files / "bad.pt").read_text() == files["bad.pt"]


# --------------------------------------------------------------------------------------------- 7. tokens


def private(host: GitHost, repo: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    host.add("owner/private", repo, token="s3cret")
    monkeypatch.setenv({"GITHUB": "GITHUB_SERVER_URL", "GITLAB": "GITLAB_HOST"}[kind], host.url)
    monkeypatch.setenv(f"{kind}_TOKEN", "s3cret")


@pytest.mark.parametrize("kind", ["GITHUB", "GITLAB"])
@pytest.mark.parametrize("makes", [("github", "gitlab"), ()], ids=["archive", "git"])
def test_private_repositories(
    repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, kind: str, makes: tuple[str, ...]
) -> None:
    """With a token of its host a private repository is loaded: refs, archive, history, and by git as well."""
    with GitHost(makes) as host:
        private(host, repo, monkeypatch, kind)
        git(repo, "tag", "--delete", "v2")
        commit = git(repo, "rev-parse", "main~1")

        assert version(load(host, "owner/private:v1", cache)) == "VERSION = 1"
        assert version(load(host, f"owner/private:{commit}", cache)) == "VERSION = 2"


def test_an_empty_variable_is_no_token(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty token is not sent."""
    monkeypatch.setenv("GITHUB_SERVER_URL", host.url)
    monkeypatch.setenv("GITHUB_TOKEN", " ")

    load(host, "owner/name", cache)

    assert {request.secret for request in host.requests} == {None}


def test_a_token_is_for_its_own_host(host: GitHost, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of github.com and gitlab.com are not sent to any other host."""
    monkeypatch.setenv("GITHUB_TOKEN", "s3cret")
    monkeypatch.setenv("GITLAB_TOKEN", "s3cret")

    load(host, "owner/name", cache)

    assert [request.secret for request in host.requests] == [None, None]


@pytest.mark.parametrize("path", ["info/refs", "archive"])
def test_a_token_does_not_follow_a_redirect(
    host: GitHost, repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A token stays with its host where the answer comes from another one, even on the same machine."""
    private(host, repo, monkeypatch, "GITHUB")
    with GitHost() as elsewhere:
        elsewhere.add("owner/private", repo)
        host.misbehave(path, redirect=elsewhere.url + "{path}")

        assert version(load(host, "owner/private:v1", cache)) == "VERSION = 1"

        assert elsewhere.count(path) == 1
        assert {request.secret for request in elsewhere.requests} == {None}
        assert {request.secret for request in host.requests} == {"s3cret"}


def test_a_wrong_token_does_not_lock_out(
    host: GitHost, repo: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that the host does not take is left out for what everybody may read."""
    monkeypatch.setenv("GITHUB_SERVER_URL", host.url)
    monkeypatch.setenv("GITHUB_TOKEN", "expired")
    host.misbehave("info/refs", status=401, times=1)

    assert version(load(host, "owner/name:v1", cache)) == "VERSION = 1"


def test_netrc(host: GitHost, repo: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login in ~/.netrc opens a private repository; a token goes before it."""
    host.add("owner/private", repo, token="s3cret")
    (tmp_path / "home" / ".netrc").write_text("machine 127.0.0.1 login me password s3cret\n")
    (tmp_path / "home" / ".netrc").chmod(0o600)

    assert version(load(host, "owner/private:v1", cache)) == "VERSION = 1"


def set_helper(tmp_path: Path, password: str) -> Path:
    """Give the user a credential helper, and return the file in which it notes what it is asked to do."""
    asked = tmp_path / "asked"
    helper = f'!f() {{ echo "$1" >> {asked}; test "$1" = get && echo username=me && echo password={password}; }}; f'
    git(tmp_path, "config", "--file", str(tmp_path / "home" / ".gitconfig"), "credential.helper", helper)
    return asked


def test_credential_helper(host: GitHost, repo: Path, cache: Cache, tmp_path: Path) -> None:
    """What the user's own credential helper knows opens a private repository, without a token."""
    host.add("owner/private", repo, token="s3cret")
    asked = set_helper(tmp_path, "s3cret")

    assert version(load(host, "owner/private:v1", cache)) == "VERSION = 1"
    assert "get" in asked.read_text().split()


def test_a_token_is_not_kept_by_the_users_helper(
    repo: Path, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of the environment goes before the user's credential helper, and is not given to it to keep."""
    asked = set_helper(tmp_path, "other")
    with GitHost(()) as host:
        private(host, repo, monkeypatch, "GITHUB")

        assert version(load(host, "owner/private:v1", cache)) == "VERSION = 1"

    assert not asked.exists()
