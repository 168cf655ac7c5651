"""What a user of torch.hub finds, through the public functions, 1 to 12: repositories, refs, names, texts.

The number in a test's name is that of the point. Each point is shown from end to end; its details have tests
beside the code that does it. The texts are compared with those that torch.hub itself raises in this process,
wherever it does so without a network.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import isohub
from isohub.errors import EntrypointError, FetchError, RefError
from tests.helpers.fileserver import file_server
from tests.helpers.githost import GitHost
from tests.helpers.repos import git, make_repo, write_files
from tests.helpers.versions import SETTINGS, answer, raised, version_files


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """Versions 1 to 3 on main, tagged v1 to v3."""
    return make_repo(tmp_path / "srv" / "net", {f"v{value}": version_files(value) for value in (1, 2, 3)})


@pytest.fixture
def host(tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, forkserver: int) -> Iterator[GitHost]:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with GitHost() as server:
        server.add("owner/net", repo)
        yield server


@pytest.fixture
def folder(tmp_path: Path, forkserver: int) -> Path:
    """A folder with a hubconf.py, as torch.hub takes with `source="local"`."""
    write_files(tmp_path / "folder", version_files(5))
    return tmp_path / "folder"


def load(host: GitHost, text: str, **settings: Any) -> Any:
    return isohub.load(text, "net", git_host=host.url, trust_repo=True, **settings)


# ---------------------------------------------------------------------------------------------- signatures

FUNCTIONS = ("load", "list", "help", "get_dir", "set_dir", "download_url_to_file", "load_state_dict_from_url")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_00_signatures(name: str, forkserver: int):
    """Torch.hub's parameters are there, in their order, with their kinds and defaults."""
    theirs = inspect.signature(getattr(torch.hub, name)).parameters
    ours = inspect.signature(getattr(isohub, name)).parameters

    expected = [(each.name, each.kind, each.default) for each in theirs.values()]
    assert expected == [(each.name, each.kind, each.default) for each in ours.values() if each.name in theirs]
    more = [each for each in ours.values() if each.name not in theirs]
    assert {each.kind for each in more} <= {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", ["load", "list", "help"])
def test_00_signatures_of_the_other_hubs(name: str, forkserver: int):
    """MegEngine's keywords and paddle's `source` are taken by all three functions, by keyword."""
    parameters = inspect.signature(getattr(isohub, name)).parameters

    asked = ("git_host", "commit", "protocol", "use_cache", "source")
    assert [parameters[each].default for each in asked] == [None, None, "HTTPS", True, "github"]


def test_00_keywords_of_megengine(host: GitHost, repo: Path):
    """`git_host`, `commit`, `protocol` and `use_cache` say where, what, how and whether anew."""
    first = git(repo, "rev-parse", "v1")
    name = host.url.removeprefix("http://")

    assert answer(load(host, "owner/net", commit=first, protocol="HTTPS")) == [1.0, 10.0]
    assert f"git@{name}" in str(isohub.RepoRef.parse("owner/net", git_host=name, protocol="SSH"))
    load(host, "owner/net:v1")
    host.forget()
    load(host, "owner/net:v1", use_cache=False)
    assert host.count("info/refs") == 1


# ----------------------------------------------------------------------------------------- 1. one download


def test_01_cold_load_is_one_download(
    host: GitHost, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """A cold load downloads one archive and a second asks nothing; both say so in torch.hub's words, and log it."""
    caplog.set_level(logging.INFO, "isohub.hub")

    commit = load(host, "owner/net:v1").isohub.commit
    cold = capfd.readouterr()
    assert [host.count("info/refs"), host.count("archive")] == [1, 1]
    host.forget()
    load(host, "owner/net:v1")
    cached = capfd.readouterr()
    load(host, "owner/net:v1", verbose=False)
    muted = capfd.readouterr()

    assert host.requests == []
    address = f"{host.url}/owner/net/archive/{commit}.zip"
    assert re.search(
        f'^Downloading: "{re.escape(address)}" to {re.escape(isohub.get_dir())}/.+$', cold.out, re.MULTILINE
    )
    found = re.fullmatch("Using cache found in (.+)\n", cached.err)
    assert found is not None
    assert (Path(found[1]) / "hubconf.py").is_file()
    assert "Using cache" not in muted.err + muted.out
    for text in (cold.out.strip(), cached.err.strip()):
        assert text in caplog.messages


def test_01_message_is_that_of_torch_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    """Weights are announced on the same stream, in the same words but for the name of the file."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    said = []
    with file_server() as server:
        address = server.put("/weights.pth", _saved(tmp_path))
        for hub in (torch.hub, isohub):
            hub.load_state_dict_from_url(address, progress=False, file_name=f"{hub.__name__}.pth")
            said.append(capsys.readouterr().out)

    theirs, ours = (re.sub("to /.*", "to FILE", each) for each in said)
    assert theirs == ours == f'Downloading: "{address}" to FILE\n'


def _saved(folder: Path) -> bytes:
    torch.save({"weight": torch.ones(1)}, folder / "saved")
    return (folder / "saved").read_bytes()


# --------------------------------------------------------------------------------------------- 2. the cache


def test_02_names_that_collide_in_torch_hub(host: GitHost, tmp_path: Path, repo: Path):
    """`feat/x` and `feat_x`, and `o/r:dev_x` and `o/r_dev:x`, each run their own code, cold and cached."""
    git(repo, "branch", "feat/x", "v1")
    git(repo, "branch", "feat_x", "v2")
    host.add("o/r", make_repo(tmp_path / "srv" / "r", {"dev_x": version_files(4)}))
    host.add("o/r_dev", make_repo(tmp_path / "srv" / "r_dev", {"x": version_files(5)}))
    texts = ("owner/net:feat/x", "owner/net:feat_x", "o/r:dev_x", "o/r_dev:x")

    for _ in range(2):
        assert [answer(load(host, text)) for text in texts] == [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [5.0, 50.0]]
    assert host.count("archive") == 4


def test_02_folder_of_torch_hub_is_used_offline(host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """What torch.hub fetched once is found when the user is offline, used where it is, and not written to."""
    place = Path(isohub.get_dir()) / "ada_models_feat_x"
    write_files(place, version_files(6))
    before = sorted(place.rglob("*"))
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    assert answer(isohub.load("ada/models:feat/x", "net")) == [6.0, 60.0]
    assert answer(torch.hub.load("ada/models:feat/x", "net", trust_repo="check", verbose=False)) == [6.0, 60.0]
    assert sorted(path for path in place.rglob("*") if "__pycache__" not in path.parts) == before


# ---------------------------------------------------------------------------------------------- 3 to 5. refs


def test_03_default_branch_is_asked_for_and_the_commit_is_shown(host: GitHost, repo: Path):
    """The default branch is the real one, by one advertisement and no REST call; the commit is shown."""
    git(repo, "branch", "--move", "main", "trunk")
    git(repo, "branch", "main", "v1")
    commit = git(repo, "rev-parse", "trunk")

    model = load(host, "owner/net")

    assert answer(model) == [3.0, 30.0]
    assert model.isohub.commit == commit
    assert commit[:7] in repr(model)
    assert isohub.Repo("owner/net", git_host=host.url).commit == commit
    assert [request.path.split("/")[3] for request in host.requests] == ["info", "archive"]


def test_04_branches_tags_and_commits(host: GitHost, repo: Path):
    """A ref may be a branch, a tag, a full commit or a short one."""
    first, second = git(repo, "rev-parse", "v1"), git(repo, "rev-parse", "v2")
    refs = ("main", "v1", second, first[:8])

    answers = [answer(load(host, f"owner/net:{ref}")) for ref in refs]

    assert answers == [[3.0, 30.0], [1.0, 10.0], [2.0, 20.0], [1.0, 10.0]]


def test_04_a_forks_commit_is_refused(host: GitHost, repo: Path, monkeypatch: pytest.MonkeyPatch):
    """A commit that no branch or tag reaches is refused in torch.hub's words, unless `skip_validation` takes it."""
    git(repo, "checkout", "--quiet", "--detach")
    write_files(repo, version_files(9))
    git(repo, "commit", "--quiet", "--all", "--message", "fork")
    commit = git(repo, "rev-parse", "HEAD")
    git(repo, "checkout", "--quiet", "main")
    # What GitHub's REST API says of branches and tags, for torch.hub to find nothing in.
    monkeypatch.setattr(torch.hub, "_read_url", lambda _: "[]")
    theirs = raised(lambda: torch.hub._validate_not_a_forked_repo("owner", "net", commit))

    ours = raised(lambda: load(host, f"owner/net:{commit}"))

    assert isinstance(ours, type(theirs))
    assert str(theirs).replace("https://github.com", host.url) == str(ours)
    assert answer(load(host, f"owner/net:{commit}", skip_validation=True)) == [9.0, 90.0]


def test_05_a_tag_and_a_branch_of_one_name(host: GitHost, repo: Path):
    """The branch goes before the tag, with the beginning of torch.hub's warning."""
    git(repo, "branch", "v1", "v2")
    text = "is ambiguous. Perhaps it is both a tag and a branch in the repo?"
    assert text in inspect.getsource(torch.hub._get_cache_or_reload)

    with pytest.warns(UserWarning, match=f"^The ref v1 {re.escape(text)}"):
        model = load(host, "owner/net:v1")

    assert answer(model) == [2.0, 20.0]


# ------------------------------------------------------------------------------------ 6 and 7. refusals, tokens


def test_06_what_cannot_be_fetched_is_one_class(host: GitHost, monkeypatch: pytest.MonkeyPatch):
    """No such repository, a rate limit and no server are each a FetchError with the URL; nothing is trusted."""
    monkeypatch.setenv("GITHUB_SERVER_URL", host.url)
    with pytest.raises(FetchError, match="no such repository, or it is private") as unknown:
        load(host, "owner/nothing")
    limit = {"X-RateLimit-Limit": "60", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1900000000"}
    host.misbehave("info/refs", status=403, headers=limit)
    with pytest.raises(FetchError, match=r"60 requests.*2030-03-17.*GITHUB_TOKEN") as limited:
        load(host, "owner/net")
    with GitHost() as gone:
        address = gone.url
    with pytest.raises(FetchError) as silent:
        isohub.load("owner/net", "net", git_host=address, trust_repo=True)

    assert [each.value.status for each in (unknown, limited, silent)] == [401, 403, None]
    for each, url in ((unknown, host.url), (limited, host.url), (silent, address)):
        assert url in str(each.value)
    assert not list(Path(isohub.get_dir()).glob("*trusted_list"))


def test_07_private_repository_with_a_token(host: GitHost, repo: Path, monkeypatch: pytest.MonkeyPatch):
    """`GITHUB_TOKEN` opens a private repository on its host, and goes to no other; an empty one is none."""
    monkeypatch.setenv("GITHUB_SERVER_URL", host.url)
    host.add("owner/private", repo, token="secret")
    monkeypatch.setenv("GITHUB_TOKEN", "")
    with pytest.raises(FetchError):
        load(host, "owner/private:v1")
    assert {None} == {request.secret for request in host.requests}
    monkeypatch.setenv("GITHUB_TOKEN", "secret")

    assert answer(load(host, "owner/private:v1")) == [1.0, 10.0]
    with GitHost() as other:
        other.add("owner/net", repo)
        assert answer(load(other, "owner/net:v2")) == [2.0, 20.0]
        assert {None} == {request.secret for request in other.requests}


# ------------------------------------------------------------------------------------------ 8 to 12. names


@pytest.mark.parametrize("text", ["nor", "", "a/b/c", "a/b:c:d"])
def test_08_text_that_names_no_repository(text: str):
    """A text that names nothing is a RefError, which is a ValueError, with the text and the forms allowed."""
    with pytest.raises(RefError) as caught:
        isohub.load(text, "net")

    assert isinstance(caught.value, ValueError)
    assert repr(text) in str(caught.value)
    assert "owner/name" in str(caught.value)
    assert caught.value.text == text


def test_08_folder_and_non_text(folder: Path):
    """A folder's name is answered with the keyword that was forgotten, a number with a TypeError."""
    with pytest.raises(RefError, match='did you mean source="local"'):
        isohub.load(str(folder), "net")
    with pytest.raises(TypeError, match="3"):
        isohub.load(3, "net")


def test_09_unknown_source(folder: Path):
    """An unknown source is torch.hub's error, up to the names that are allowed; case does not matter."""
    theirs, ours = (
        raised(lambda hub=hub: hub.load(str(folder), "net", source="nowhere")) for hub in (torch.hub, isohub)
    )

    assert isinstance(ours, type(theirs))
    start = 'Unknown source: "nowhere". Allowed values: "github" | '
    assert [str(each).startswith(start) for each in (theirs, ours)] == [True, True]
    assert answer(isohub.load(str(folder), "net", source="LOCAL")) == [5.0, 50.0]


@pytest.mark.parametrize("model", [3, None])
def test_10_name_that_is_no_text(folder: Path, model: object):
    """A name that is no text is torch.hub's error, to the letter."""
    theirs, ours = (raised(lambda hub=hub: hub.load(str(folder), model, source="local")) for hub in (torch.hub, isohub))

    assert (ValueError, str(theirs)) == (type(theirs), str(ours))
    assert isinstance(ours, ValueError)


@pytest.mark.parametrize("model", ["nett", "fixed", "nope"])
def test_10_missing_entrypoint(folder: Path, model: str):
    """A name that is missing or cannot be called is torch.hub's error, and tells what there is."""
    theirs, ours = (raised(lambda hub=hub: hub.load(str(folder), model, source="local")) for hub in (torch.hub, isohub))

    assert type(theirs) is RuntimeError
    assert isinstance(ours, EntrypointError)
    assert isinstance(ours, RuntimeError)
    assert isinstance(ours, LookupError)
    assert str(ours).startswith(str(theirs))
    assert "net" in ours.available
    assert ("Did you mean 'net'?" in str(ours)) == (model == "nett")
    assert str(ours) == str(raised(lambda: isohub.help(folder, model)))


def test_10_hidden_entrypoints_list_and_help(folder: Path):
    """`_hidden` loads and is not listed; `help` is the docstring, or None."""
    assert isohub.load(folder, "_hidden") == 5.0
    assert isohub.list(str(folder), source="local") == ["Net", "net", "nothing_said"]
    assert isohub.help(str(folder), "net", source="local") == "Return version 5.0."
    assert isohub.help(folder, "nothing_said") is None


def test_11_missing_packages(folder: Path):
    """Missing packages are torch.hub's error from load and help, and go before an import that needs them."""
    head = 'dependencies = ["torch", "isohub_missing_a", "isohub_missing_b"]\n'
    write_files(folder, {"hubconf.py": f"{head}def net(): pass\n"})
    theirs = raised(lambda: torch.hub.load(str(folder), "net", source="local"))
    write_files(folder, {"hubconf.py": f"import isohub_missing_a\n{head}def net(): pass\n"})

    for ours in (raised(lambda: isohub.load(folder, "net")), raised(lambda: isohub.help(folder, "net"))):
        assert isinstance(ours, RuntimeError)
        assert (RuntimeError, str(theirs)) == (type(theirs), str(ours))
        assert str(ours) == "Missing dependencies: isohub_missing_a, isohub_missing_b"


def test_12_no_hubconf(tmp_path: Path, host: GitHost):
    """Without hubconf.py there is a FileNotFoundError that names it, with torch.hub's errno, filename and end."""
    (tmp_path / "empty").mkdir()
    host.add("owner/empty", make_repo(tmp_path / "srv" / "empty", {"v1": {"README": "nothing\n"}}))
    theirs, ours = (
        raised(lambda hub=hub: hub.load(str(tmp_path / "empty"), "net", source="local")) for hub in (torch.hub, isohub)
    )

    assert isinstance(theirs, FileNotFoundError)
    assert isinstance(ours, FileNotFoundError)
    path = os.fspath(tmp_path / "empty" / "hubconf.py")
    assert (theirs.errno, theirs.filename) == (ours.errno, ours.filename) == (errno.ENOENT, path)
    end = f"No such file or directory: '{path}'"
    assert str(theirs) == f"[Errno 2] {end}"
    assert str(ours) == f"[Errno 2] No hubconf.py in {tmp_path / 'empty'}: {end}"
    with pytest.raises(FileNotFoundError, match=f"{re.escape(isohub.get_dir())}/.+/hubconf.py"):
        load(host, "owner/empty:v1")
