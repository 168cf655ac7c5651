"""`resolve`: from what the user wrote to a commit, asked of real git repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
import warnings
from collections import Counter
from pathlib import Path

import pytest

from isohub.errors import FetchError, ResolveError
from isohub.hub import git
from isohub.hub.resolve import Resolved, resolve
from isohub.refs import RepoRef


def ask(repository, ref: str | None = None) -> Resolved:
    return resolve(RepoRef.parse(f"git+{repository.url}{'' if ref is None else '@' + ref}"))


def test_default_branch_is_the_real_one(repository) -> None:
    """Without a ref the branch that HEAD points at is taken, whatever its name."""
    repository.git("branch", "--move", "main", "trunk")
    repository.git("branch", "main", "trunk")
    commit = repository.commit("on trunk")

    resolved = ask(repository)

    assert (resolved.commit, resolved.ref_name) == (commit, "trunk")
    assert ask(repository, "HEAD").commit == commit


def test_branches_and_tags(repository) -> None:
    """A branch with slashes, a light tag and an annotated tag each give the commit behind them."""
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "light")
    repository.git("tag", "--annotate", "full", "--message", "x")
    repository.git("tag", "--annotate", "nested", "full", "--message", "x")
    repository.git("checkout", "--quiet", "-b", "feat/x@2")
    second = repository.commit("second")

    assert (ask(repository, "feat/x@2").commit, ask(repository, "feat/x@2").ref_name) == (second, "feat/x@2")
    for tag in ("light", "full", "nested", "refs/tags/full"):
        assert ask(repository, tag).commit == first
    assert ask(repository, "refs/heads/feat/x@2").ref_name == "feat/x@2"


@pytest.mark.filterwarnings("default")
def test_a_tag_and_a_branch_of_one_name(repository) -> None:
    """A branch goes before a tag of the same name, with torch.hub's warning; the full name avoids both."""
    first = repository.git("rev-parse", "HEAD")
    repository.git("tag", "v1")
    repository.git("checkout", "--quiet", "-b", "v1")
    second = repository.commit("second")
    beginning = "The ref v1 is ambiguous. Perhaps it is both a tag and a branch in the repo?"

    with pytest.warns(UserWarning, match="ambiguous") as caught:
        assert ask(repository, "v1").commit == second

    assert [str(warning.message).startswith(beginning) for warning in caught] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ask(repository, "refs/tags/v1").commit == first
        assert ask(repository, "refs/heads/v1").commit == second


@pytest.mark.parametrize("length", [40, 12, 7])
def test_full_and_short_commits(repository, length: int) -> None:
    """A full or short commit is found at a tip and deeper in the history, in either case of letters."""
    old = repository.git("rev-parse", "HEAD")
    tip = repository.commit("second")

    for commit in (old, tip):
        assert ask(repository, commit[:length]) == Resolved(
            repo=RepoRef.parse(f"git+{repository.url}@{commit[:length]}"), commit=commit, ref_name=None
        )
        assert ask(repository, commit[:length].upper()).commit == commit


def test_a_tip_is_found_with_one_question(repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the advertisement tells is not asked for again: git runs once."""
    tip = repository.git("rev-parse", "HEAD")
    commands: list[str] = []
    run = git.run
    monkeypatch.setattr(git, "run", lambda args, **more: commands.append(args[0]) or run(args, **more))

    for ref in (None, "main", tip, tip[:7]):
        ask(repository, ref)

    assert commands == ["ls-remote"] * 4


def test_ambiguous_short_commit(repository) -> None:
    """A short commit that begins several commits is refused with the candidates."""
    # Among 1,500 commits two with the same first four digits are all but certain, and dates are fixed.
    who = "committer Ada <ada@example.org> 1700000000 +0000"
    stream = "".join(f"commit refs/heads/long\n{who}\ndata <<.\n{n}\n.\n" for n in range(1500))
    repository.git("fast-import", "--quiet", text=stream)
    _, *commits = repository.git("rev-list", "long").split()
    short, count = Counter(commit[:4] for commit in commits).most_common(1)[0]
    assert count > 1

    with pytest.raises(ResolveError, match=f"short commit {short} is ambiguous") as caught:
        ask(repository, short)

    for commit in commits:
        assert (commit in str(caught.value)) == commit.startswith(short)
    assert ask(repository, next(c for c in commits if c.startswith(short))).ref_name is None


@pytest.mark.parametrize("length", [40, 10])
def test_unreachable_commit(repository, length: int) -> None:
    """A commit that no branch or tag reaches is refused in torch.hub's words, though it is in the repository."""
    repository.git("checkout", "--quiet", "--detach")
    forks = repository.commit("from a fork")
    repository.git("update-ref", "refs/pull/1/head", forks)
    repository.git("checkout", "--quiet", "main")

    with pytest.raises(ResolveError) as caught:
        ask(repository, forks[:length])

    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == (
        f"Cannot find {forks[:length]} in {repository.url}. If it's a commit from a forked repo, please call "
        "hub.load() with forked repo directly."
    )


def test_a_branch_cannot_stand_in_for_a_commit(repository) -> None:
    """A branch whose name is a full commit does not shadow that commit."""
    old = repository.git("rev-parse", "HEAD")
    tip = repository.commit("second")
    repository.git("update-ref", f"refs/heads/{old}", tip)

    assert ask(repository, old).commit == old


def test_a_branch_that_looks_like_a_short_commit(repository) -> None:
    """A branch named with hexadecimal digits is found as a branch."""
    repository.git("branch", "deadbeef")

    assert ask(repository, "deadbeef").ref_name == "deadbeef"


def test_names_that_look_like_options(repository, tmp_path: Path) -> None:
    """A ref that begins with a dash is a name like any other, and no option of git's."""
    tip = repository.git("rev-parse", "HEAD")
    repository.git("update-ref", "refs/heads/--upload-pack=x", tip)

    assert ask(repository, "--upload-pack=x").commit == tip
    with pytest.raises(ResolveError, match="no branch, tag or commit"):
        ask(repository, f"--output={tmp_path / 'written'}")
    assert not (tmp_path / "written").exists()


def test_unknown_ref(repository) -> None:
    """An unknown ref is refused with the nearest names and the number of branches and tags."""
    repository.git("branch", "feature")
    repository.git("tag", "v1.0")

    with pytest.raises(ResolveError) as caught:
        ask(repository, "feature-2")

    assert "'feature-2'" in str(caught.value)
    assert "Did you mean feature?" in str(caught.value)
    assert "2 branches and 1 tags" in str(caught.value)
    assert (caught.value.repo, caught.value.ref) == (repository.url, "feature-2")


def test_detached_head(repository) -> None:
    """A clone that stands on a commit has that one as its default, and what it reaches can be asked for."""
    old = repository.git("rev-parse", "HEAD")
    repository.git("checkout", "--quiet", "--detach")
    middle, tip = repository.commit("second"), repository.commit("third")
    assert old != middle

    assert ask(repository) == Resolved(repo=RepoRef.parse(f"git+{repository.url}"), commit=tip, ref_name=None)
    assert ask(repository, middle[:8]).commit == middle


def test_head_without_commits(repository) -> None:
    """A default branch that does not exist is refused with the names there are."""
    repository.git("symbolic-ref", "HEAD", "refs/heads/unborn")

    with pytest.raises(ResolveError, match=r"no default branch with commits.*main"):
        ask(repository)
    assert ask(repository, "main").ref_name == "main"


def test_empty_repository(make_repository) -> None:
    """A repository without commits says so."""
    with pytest.raises(ResolveError, match="no commits yet"):
        ask(make_repository("empty.git", bare=True), "main")


def test_not_a_repository(tmp_path: Path, repository) -> None:
    """A plain folder, one inside a repository, and a missing one are refused, each in its own words."""
    (tmp_path / "plain").mkdir()
    (repository.path / "inner").mkdir()

    for folder in (tmp_path / "plain", repository.path / "inner"):
        with pytest.raises(ResolveError, match=r'not a git repository.*source="local"'):
            resolve(RepoRef.parse(f"git+{folder.as_uri()}"))
    with pytest.raises(ResolveError, match="There is no folder"):
        resolve(RepoRef.parse("git+file:///nowhere/models@v1"))


def test_broken_repository(repository) -> None:
    """What git says of a repository that it cannot read is in the error."""
    shutil.rmtree(repository.path / ".git" / "objects")

    with pytest.raises(ResolveError, match=r"Cannot read file://.*git ls-remote failed: .*"):
        ask(repository)


def test_bare_linked_shallow_and_unsuffixed(repository, tmp_path: Path) -> None:
    """A bare repository with or without its `.git`, a linked working tree and a shallow clone can be read."""
    old = repository.git("rev-parse", "HEAD")
    tip = repository.commit("second")
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(tmp_path / "bare.git"))
    repository.git("worktree", "add", "--quiet", "-b", "linked", str(tmp_path / "linked"), old)
    repository.git("clone", "--quiet", "--depth=1", repository.url, str(tmp_path / "shallow"))

    for name in ("bare.git", "bare", "linked"):
        assert resolve(RepoRef.parse(f"git+file://{tmp_path}/{name}@{old}")).commit == old
    assert resolve(RepoRef.parse(f"git+file://{tmp_path}/linked")).ref_name == "linked"
    assert resolve(RepoRef.parse(f"git+file://{tmp_path}/shallow@{tip[:9]}")).commit == tip
    with pytest.raises(ResolveError, match="Cannot find"):
        resolve(RepoRef.parse(f"git+file://{tmp_path}/shallow@{old}"))


def test_tags_of_what_is_no_commit(repository) -> None:
    """A tag on a file does not stop the search through the history."""
    old = repository.git("rev-parse", "HEAD")
    repository.commit("second")
    repository.git("tag", "blob", repository.git("rev-parse", "HEAD:hubconf.py"))

    assert ask(repository, old).commit == old


def test_variables_of_a_git_hook_are_not_seen(repository, make_repository, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller inside a git hook, whose GIT_DIR names another repository, gets the one that was asked for."""
    other = make_repository("other")
    other.commit("other")
    monkeypatch.setenv("GIT_DIR", str(other.path / ".git"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "broken")

    commit = ask(repository).commit

    monkeypatch.undo()
    assert commit == repository.git("rev-parse", "HEAD")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a repository to another user")
def test_repository_of_another_user(repository) -> None:
    """A repository that belongs to somebody else can be read, its history too."""
    old = repository.git("rev-parse", "HEAD")
    repository.commit("second")
    for path in (repository.path, *repository.path.rglob("*")):
        os.chown(path, 12345, 12345)

    assert ask(repository, old).commit == old


def test_working_tree_has_no_commit(tmp_path: Path) -> None:
    """A folder resolves to itself, without git."""
    ref = RepoRef.parse(tmp_path)

    assert resolve(ref) == Resolved(repo=ref, commit=None, ref_name=None)


def test_no_git_program(repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a git program the error says so."""
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(FetchError, match="git program was not found"):
        ask(repository)


def test_git_that_hangs_is_killed_with_its_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A git that takes too long is killed, and so is what it started."""
    fifo = tmp_path / "alive"
    os.mkfifo(fifo)
    program = tmp_path / "git"
    program.write_text(f"#!/bin/sh\n(exec sleep 600 > {fifo}) & wait\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)

    with pytest.raises(git.GitError, match=r"longer than 0\.5 s"):
        git.run(["ls-remote"], timeout_s=0.5)

    assert os.read(reader, 1) == b""  # ends once nobody holds the other end
    os.close(reader)


def test_control_characters_of_git_are_not_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What git prints reaches the error without terminal escapes."""
    program = tmp_path / "git"
    program.write_text("#!/bin/sh\nprintf 'fatal: \\033[31mred\\007\\nsecond' >&2; exit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(git.GitError) as caught:
        git.run(["ls-remote", "x"])

    assert caught.value.stderr == "fatal: [31mred\nsecond"
    assert str(caught.value) == "git ls-remote failed: fatal: [31mred\nsecond"


def test_git_settings_of_the_user_are_not_read(repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL rewritten by the user's own git configuration still means the repository that was named."""
    (tmp_path / ".gitconfig").write_text(f'[url "file:///nowhere/"]\n\tinsteadOf = {repository.url}\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = subprocess.run(["git", "ls-remote", repository.url], check=False, capture_output=True, env={**os.environ})
    assert plain.returncode != 0, "the configuration takes no effect, and the test shows nothing"

    assert ask(repository).commit == repository.git("rev-parse", "HEAD")
