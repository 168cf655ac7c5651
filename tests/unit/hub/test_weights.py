"""Weights: the file of this URL and of no other, brought once for all who ask."""

from __future__ import annotations

import inspect
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from isohub.errors import FetchError, HashMismatchError
from isohub.hub.weight_record import base_name, hash_in
from isohub.hub.weight_store import WeightStore
from isohub.hub.weights import fetch_weights, load_state_dict_from_url
from tests.helpers.fileserver import FileServer
from tests.helpers.state_dicts import ONE, TWO, saved, sha256, value_of

pytestmark = pytest.mark.usefixtures("hurry")


@pytest.fixture
def checkpoints(hub_home: Path) -> Path:
    """torch.hub's folder of weights."""
    folder = hub_home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


# ------------------------------------------------------------------------------------------ as in torch.hub


def test_signature_is_that_of_torch_hub() -> None:
    """Parameters and defaults are torch.hub's, since people pass them by name."""
    expected = inspect.signature(torch.hub.load_state_dict_from_url).parameters.values()
    actual = inspect.signature(load_state_dict_from_url).parameters.values()

    assert [(one.name, one.default, one.kind) for one in expected] == [
        (one.name, one.default, one.kind) for one in actual
    ]


def test_weights_are_loaded_and_kept(server: FileServer, capsys: pytest.CaptureFixture[str]) -> None:
    """The first call downloads, with torch.hub's line on stdout; the second makes no request and prints nothing."""
    url = server.put("/model.pth", ONE)

    first = load_state_dict_from_url(url, map_location="meta")
    printed = capsys.readouterr().out
    second = load_state_dict_from_url(url, weights_only=True)

    assert first["weight"].device.type == "meta"
    assert value_of(second) == 1.0
    assert printed.startswith(f'Downloading: "{url}" to /')
    assert capsys.readouterr().out == ""
    assert len(server.requests) == 1


def test_weights_only_is_passed_on(server: FileServer) -> None:
    """`weights_only=True` refuses what would run code."""
    file = io.BytesIO()
    torch.save({"path": Path("x")}, file)
    url = server.put("/model.pth", file.getvalue())

    with pytest.raises(Exception, match="Weights only load failed"):
        load_state_dict_from_url(url, weights_only=True)

    assert load_state_dict_from_url(url) == {"path": Path("x")}


@pytest.mark.parametrize("model_dir", [None, "models"])
def test_old_zip_is_unpacked(server: FileServer, tmp_path: Path, model_dir: str | None) -> None:
    """A zip file with one file in it, as people packed weights before torch 1.6, loads with a warning."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.pth", saved(3.0, _use_new_zipfile_serialization=False))
    url = server.put("/model.zip", file.getvalue())

    with pytest.warns(FutureWarning, match="Falling back to the old format"):
        state = load_state_dict_from_url(url, model_dir and tmp_path / model_dir)

    assert value_of(state) == 3.0


def test_old_variable_warns(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """TORCH_MODEL_ZOO is answered as by torch.hub."""
    monkeypatch.setenv("TORCH_MODEL_ZOO", "/x")

    with pytest.warns(UserWarning, match="TORCH_MODEL_ZOO is deprecated"):
        load_state_dict_from_url(server.put("/model.pth", ONE))


# ------------------------------------------------------------------------------------------ never another's


def test_urls_of_one_base_name_never_meet(server: FileServer, tmp_path: Path) -> None:
    """Two URLs with one base name have their own weights, in the store and in one `model_dir`."""
    one, two = server.put("/a/model.pth", ONE), server.put("/b/model.pth", TWO)
    three = server.put("/a/model.pth?v=3", saved(3.0))

    for model_dir in (None, tmp_path / "models"):
        for _ in range(2):
            values = [value_of(load_state_dict_from_url(url, model_dir)) for url in (one, two, three)]
            assert values == [1.0, 2.0, 3.0]

    assert set(server.count().values()) == {1}
    assert (tmp_path / "models" / "model.pth").read_bytes() == ONE


def test_urls_of_one_base_name_in_a_race(server: FileServer, tmp_path: Path) -> None:
    """Many threads that bring two URLs of one base name into one `model_dir` each get their own."""
    urls = [server.put(f"/{number}/model.pth", saved(float(number))) for number in range(4)]

    def load(number: int) -> float:
        return value_of(load_state_dict_from_url(urls[number % 4], tmp_path / "models", progress=False))

    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(load, range(32)))

    assert values == [float(number % 4) for number in range(32)]
    assert set(server.count().values()) == {1}


def test_file_of_the_user_is_left_alone(server: FileServer, tmp_path: Path) -> None:
    """A file in `model_dir` that nothing ties to the URL is neither loaded nor overwritten."""
    (tmp_path / "model.pth").write_bytes(TWO)

    state = load_state_dict_from_url(server.put("/model.pth", ONE), tmp_path)

    assert value_of(state) == 1.0
    assert (tmp_path / "model.pth").read_bytes() == TWO


def test_file_that_proves_itself_is_used(server: FileServer, tmp_path: Path) -> None:
    """A file in `model_dir` with its hash in its name is the URL's, without a request; a false one is not."""
    name = f"model-{sha256(ONE)[:8]}.pth"
    url = server.put(f"/{name}", ONE)
    (tmp_path / name).write_bytes(ONE)
    (tmp_path / "false").mkdir()
    (tmp_path / "false" / name).write_bytes(TWO)

    assert value_of(load_state_dict_from_url(url, tmp_path)) == 1.0
    assert server.requests == []
    assert value_of(load_state_dict_from_url(url, tmp_path / "false")) == 1.0
    assert (tmp_path / "false" / name).read_bytes() == TWO


def test_edited_file_is_not_loaded(server: FileServer, tmp_path: Path) -> None:
    """A file in `model_dir` that was changed since is somebody else's, and what was brought comes again."""
    url = server.put("/model.pth", ONE)
    load_state_dict_from_url(url, tmp_path)
    (tmp_path / "model.pth").write_bytes(TWO)

    assert value_of(load_state_dict_from_url(url, tmp_path)) == 1.0
    assert (tmp_path / "model.pth").read_bytes() == TWO


def test_checkpoints_of_torch_hub(server: FileServer, checkpoints: Path) -> None:
    """What torch.hub brought is used if its name proves it, and not if it only has the same name."""
    proven = f"proven-{sha256(ONE)[:8]}.pth"
    dated = "dated-20260101.pth"
    (checkpoints / proven).write_bytes(ONE)
    (checkpoints / "plain.pth").write_bytes(ONE)
    (checkpoints / dated).write_bytes(ONE)

    assert fetch_weights(server.put(f"/{proven}", TWO)) == checkpoints / proven
    assert server.requests == []
    for name in ("plain.pth", dated):
        assert fetch_weights(server.put(f"/{name}", TWO)).read_bytes() == TWO
    assert len(server.requests) == 2


def test_file_name_of_torch_hub(server: FileServer, checkpoints: Path) -> None:
    """`file_name` names torch.hub's file, and never leads out of its folder."""
    name = f"mine-{sha256(ONE)[:8]}.pth"
    (checkpoints / name).write_bytes(ONE)
    (checkpoints.parent / name).write_bytes(ONE)
    url = server.put("/model.pth", ONE)

    assert fetch_weights(url, file_name=name) == checkpoints / name
    assert fetch_weights(server.put("/b.pth", ONE), file_name=f"../{name}").name == "b.pth"


def test_proven_file_is_hashed_once(server: FileServer, checkpoints: Path) -> None:
    """What was proven is recorded, and known by size and time from then on; a change is seen."""
    name = f"model-{sha256(ONE)[:8]}.pth"
    url = server.put(f"/{name}", ONE)
    (checkpoints / name).write_bytes(ONE)
    fetch_weights(url)
    record = WeightStore().find(url)

    assert record is not None
    assert record.path() == checkpoints / name
    (checkpoints / name).write_bytes(TWO)
    assert record.path() is None
    assert fetch_weights(url).read_bytes() == ONE


def test_unproven_file_is_named_when_offline(
    server: FileServer, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the network the error tells of the file that lies there, and why it is not taken."""
    (checkpoints / "model.pth").write_bytes(ONE)
    monkeypatch.setenv("ISOHUB_OFFLINE", "1")

    with pytest.raises(FetchError, match=r"ISOHUB_OFFLINE.*checkpoints/model\.pth has its name, but nothing shows"):
        fetch_weights(server.put("/model.pth", ONE))


# ------------------------------------------------------------------------------------------ hashes


def test_check_hash(server: FileServer) -> None:
    """The file must have the hash of its name; a wrong one is refused each time, and nothing is kept."""
    right = server.put(f"/right-{sha256(ONE)[:10]}.pth", ONE)
    wrong = server.put("/wrong-deadbeef.pth", ONE)

    assert value_of(load_state_dict_from_url(right, check_hash=True)) == 1.0
    for _ in range(2):
        with pytest.raises(RuntimeError, match='invalid hash value \\(expected "deadbeef", got "'):
            load_state_dict_from_url(wrong, check_hash=True)
    assert len(server.requests) == 3
    assert WeightStore().find(wrong) is None
    assert WeightStore().partials() == []


@pytest.mark.parametrize("name", ["model.pth", "model-1.0.pth", "model-BFD8DEAC.pth", "resnet-abc.pth"])
@pytest.mark.parametrize("model_dir", [None, "models"])
def test_check_hash_without_a_hash(server: FileServer, tmp_path: Path, name: str, model_dir: str | None) -> None:
    """When no name has a hash the check is not skipped in silence: it is an error, before any request."""
    url = server.put(f"/{name}", ONE)

    with pytest.raises(ValueError, match=r"check_hash=True needs a name"):
        load_state_dict_from_url(url, model_dir and str(tmp_path / model_dir), check_hash=True)

    assert server.requests == []


def test_hash_decides_among_contents(server: FileServer) -> None:
    """When the content of a URL changed, each hash gets the file that has it, and no hash the newest."""
    url = server.put("/model.pth", ONE)
    fetch_weights(url)
    server.put("/model.pth", TWO)

    assert fetch_weights(url).read_bytes() == ONE
    assert fetch_weights(url, sha256(TWO)).read_bytes() == TWO
    assert fetch_weights(url, sha256(ONE)[:8]).read_bytes() == ONE
    assert fetch_weights(url).read_bytes() == TWO
    assert len(server.requests) == 2
    with pytest.raises(HashMismatchError):
        fetch_weights(url, "0" * 8)


def test_hash_is_found_in_names() -> None:
    """torch.hub's rule for names, with the eight digits that its documentation asks for."""
    expected = {
        "resnet18-bfd8deac.pth": "bfd8deac",
        "v-1.0-0123456789.tar.gz": "0123456789",
        "model-1.pth": None,
        "m.pth": None,
    }
    assert expected == {name: hash_in(name) for name in expected}
    assert [
        base_name(f"https://h/{path}")
        for path in ("x/model.pth?a=/b#c", "x/", "x/..", f"x/{'n' * 300}.pth", "a%2F..%2Fb")
    ] == ["model.pth", "weights", "weights", "weights", "a%2F..%2Fb"]
