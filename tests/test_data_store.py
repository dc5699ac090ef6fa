"""Tests of the triples of prepared data sets and of plain pictures."""

from __future__ import annotations

import errno
import importlib
import io
import os
import pickle
import resource
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dctransformer.codec.jpeg import huffman_bytes, read_jpeg_bytes
from dctransformer.data import TripleStore, prepare
from dctransformer.data.images import prepare_image
from pictures import photo, real_photographs

store_module = importlib.import_module("dctransformer.data.store")
preparing = importlib.import_module("dctransformer.data.prepare")
plan = importlib.import_module("dctransformer.data.plan")
shards = importlib.import_module("dctransformer.data.shards")

SIZE, QUALITY = 32, 50


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch) -> None:
    """Use a temporary user cache folder in every test."""
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path / "user cache"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i in range(40):
        (root / "ab"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(photo(40, 50, i)).save(root / "ab"[i % 2] / f"{i:02d}.png")
    Image.new("RGB", (8, 8), (128, 128, 128)).save(root / "a" / "blank.png")  # no triples at all
    return root


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "out"
    prepare(photos, out, size=SIZE, quality=QUALITY, val_fraction=0.2, workers=1, progress=False)
    return out


@pytest.fixture
def data(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared, tmp_path / "data", ignore=shutil.ignore_patterns(".cache"))


def stored(folder: Path, split: str) -> list[dict]:
    return [row for path in sorted(folder.glob(f"{split}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def open_quietly(folder: Path, split: str = "train") -> TripleStore:
    return TripleStore.open(folder, split, progress=False)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_triples_are_those_of_the_files(data, split):
    store, rows = open_quietly(data, split), stored(data, split)
    assert len(store) == len(rows) == store.info.splits[split]
    for i, row in enumerate(rows):
        image = read_jpeg_bytes(row["image"]["bytes"])
        triples = store.triples(i)
        assert triples.dtype == torch.int32
        assert torch.equal(triples, image.to_triples()[0])
        assert store.labels[i] == row["label"]
        assert store.huffman_bytes[i] == huffman_bytes(image)
    assert torch.equal(store.triples(-1), store.triples(len(store) - 1))
    with pytest.raises(IndexError):
        store.triples(len(store))


def test_types_and_lengths(data):
    store = open_quietly(data)
    types = {
        "channels": "u1",
        "positions": "i4",
        "values": "i2",
        "offsets": "i8",
        "labels": "i8",
        "huffman_bytes": "i4",
    }
    for name, kind in types.items():
        assert getattr(store, name).dtype == np.dtype(kind), name
    assert store.offsets[0] == 0 and len(store.offsets) == len(store) + 1
    assert len(store.channels) == len(store.positions) == len(store.values) == store.offsets[-1]
    assert (np.asarray(store.values) != 0).all()
    assert 0 in np.diff(np.concatenate([s.offsets for s in (store, open_quietly(data, "validation"))]))  # the blank one


def test_the_second_time_nothing_is_derived(data, monkeypatch):
    first = open_quietly(data)
    monkeypatch.setattr(store_module, "read_jpeg_bytes", None)
    second = open_quietly(data)
    arrays = ("channels", "values", "offsets", "labels")
    assert not any(getattr(second, name).flags.owndata for name in arrays)  # memory-mapped
    assert not second.values.flags.writeable
    assert np.array_equal(first.values, second.values) and np.array_equal(first.offsets, second.offsets)


def test_several_processes_give_the_same(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROW_GROUP", 5)
    prepare(photos, tmp_path / "out", size=SIZE, quality=QUALITY, workers=1, progress=False)
    results = []
    for cores in (1, 2):
        monkeypatch.setattr(store_module, "cores", lambda cores=cores: cores)
        shutil.rmtree(tmp_path / "out" / ".cache", ignore_errors=True)
        results.append(open_quietly(tmp_path / "out"))
    for name in ("channels", "positions", "values", "offsets", "labels", "huffman_bytes"):
        assert np.array_equal(getattr(results[0], name), getattr(results[1], name)), name


def test_other_shards_are_derived_anew(data, photos, tmp_path):
    old = open_quietly(data)
    other = tmp_path / "other"
    prepare(photos, other, size=SIZE, quality=QUALITY + 20, val_fraction=0.2, workers=1, progress=False)
    for name in ("train-00000.parquet", "dctransformer.json"):
        shutil.copy(other / name, data / name)
    new = open_quietly(data)
    assert len(new) == len(old) and new.offsets[-1] > old.offsets[-1]
    assert len(list((data / ".cache").glob("train-*"))) == 1  # the old one is gone


def test_a_data_set_without_validation_or_labels(tmp_path):
    (tmp_path / "flat").mkdir()
    for i in range(3):
        Image.fromarray(photo(20, 20, i)).save(tmp_path / "flat" / f"{i}.png")
    prepare(tmp_path / "flat", tmp_path / "out", size=16, val_fraction=0, workers=1, progress=False)
    for _ in range(2):
        assert len(open_quietly(tmp_path / "out", "validation")) == 0
        assert open_quietly(tmp_path / "out").labels.tolist() == [-1, -1, -1]


def test_a_store_can_be_pickled_for_loader_processes(data):
    store = open_quietly(data)
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.triples(3), store.triples(3))


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_folders_that_are_no_data_set(tmp_path, photos, data):
    with pytest.raises(ValueError, match=r"there is no folder .+nowhere; make one with: dctransformer prepare"):
        open_quietly(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no prepared data set lies in .+; make one with: dctransformer prepare"):
        open_quietly(photos)
    with pytest.raises(ValueError, match="there is no split test; choose train or validation"):
        open_quietly(data, "test")


def test_missing_and_damaged_shards(data):
    shard = data / "train-00000.parquet"
    good = shard.read_bytes()
    shard.unlink()
    with pytest.raises(ValueError, match=r"hold 0 pictures, not .+ restore the missing files"):
        open_quietly(data)
    shard.write_bytes(good[:-100])
    with pytest.raises(ValueError, match=r"train-00000\.parquet is damaged"):
        open_quietly(data)
    table = pq.read_table(io.BytesIO(good))
    cells = table["image"].to_pylist()
    cells[3]["bytes"] = cells[3]["bytes"][:-20]
    pq.write_table(table.set_column(0, "image", pa.array(cells, table["image"].type)), shard)
    with pytest.raises(ValueError, match="is cut off or damaged") as error:
        open_quietly(data)
    assert "\n" not in str(error.value)
    cells[3]["bytes"] = prepare_image(io.BytesIO(png_bytes()).read(), SIZE, QUALITY + 1)
    pq.write_table(table.set_column(0, "image", pa.array(cells, table["image"].type)), shard)
    with pytest.raises(ValueError, match="is not 32x32, 4:2:0, quality 50; prepare the data again"):
        open_quietly(data)
    assert not list((data / ".cache").iterdir())
    shard.write_bytes(good)
    assert len(open_quietly(data)) == len(table)


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_shards_that_never_end_are_refused(data, kind):
    """A named pipe or device in place of a shard is neither opened nor prepared from."""
    for shard in data.glob("*.parquet"):
        shard.unlink()
        if kind == "pipe":
            os.mkfifo(shard)
        else:
            shard.symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"train-00000\.parquet is not a regular file; replace or remove it"):
        open_quietly(data)
    (data / "dctransformer.json").unlink()
    with pytest.raises(ValueError, match="holds no pictures"):
        prepare(data, data.parent / "again", size=SIZE, quality=QUALITY, workers=1, progress=False)


def png_bytes() -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(30, 30)).save(out, "PNG")
    return out.getvalue()


def change(file: Path, place: int, by: int) -> None:
    """Change one byte of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= by
    file.write_bytes(data)


def arrow_file(data: Path) -> Path:
    """The cache file of a data set's training split."""
    (file,) = (data / ".cache").glob("train-*")
    return file


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "offsets", "missing", "link", "folder"])
def test_a_damaged_cache_is_derived_anew(data, tmp_path, damage):
    expected = open_quietly(data)
    file = arrow_file(data)
    arrays = [np.array(getattr(expected, name)) for name in ("values", "offsets")]
    message = "does not hold what the shards give; the triples are derived anew"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "bit":
        change(file, file.stat().st_size // 2, 1)
    elif damage == "offsets":
        place = file.read_bytes().index(arrays[1][1:4].tobytes())
        change(file, place + 6, 0x40)  # huge in the middle
    elif damage == "missing":
        file.unlink()
    else:
        file.rename(tmp_path / file.name)
        if damage == "link":
            file.symlink_to(tmp_path / file.name)
        else:
            file.mkdir()
        message = "can't be used"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = open_quietly(data)
    assert [message in str(warning.message) for warning in caught] == [True] * (damage != "missing")
    assert np.array_equal(store.values, arrays[0]) and np.array_equal(store.offsets, arrays[1])
    if message == "can't be used":  # not used; the triples are stored elsewhere
        assert file.is_symlink() or file.is_dir()
        assert (tmp_path / "user cache" / "triples" / file.name).is_file()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_quietly(data)


def test_a_cache_that_came_with_a_data_set_is_checked(data, tmp_path, monkeypatch):
    """An intact foreign cache is kept; one whose triples differ from the shards is never used."""
    expected = np.array(open_quietly(data).values)
    file = arrow_file(data)
    before = file.read_bytes()
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path / "another user"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(open_quietly(data).values, expected)
    assert file.read_bytes() == before

    change(file, len(before) // 2, 0x10)
    monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path / "a third"))
    with pytest.warns(UserWarning, match="does not hold what the shards give"):
        store = open_quietly(data)
    assert np.array_equal(store.values, expected) and file.read_bytes() == before

    monkeypatch.setattr(store_module, "read_jpeg_bytes", None)  # trusted after the first check
    assert np.array_equal(open_quietly(data).values, expected)


def test_a_cache_is_not_read_before_it_is_checked(data, tmp_path, monkeypatch):
    open_quietly(data)
    arrow_file(data).write_bytes(b"ARROW1 of somebody else")
    opened: list[bytes] = []
    read = pa.ipc.open_file
    monkeypatch.setattr(pa.ipc, "open_file", lambda buffer: opened.append(bytes(buffer)) or read(buffer))
    for user in ("user cache", "another user"):  # with a receipt and without
        monkeypatch.setenv("DCTRANSFORMER_CACHE", str(tmp_path / user))
        arrow_file(data).write_bytes(b"ARROW1 of somebody else")
        with pytest.warns(UserWarning, match="does not hold what the shards give"):
            open_quietly(data)
    assert len(opened) == 2 and not any(b"somebody" in contents for contents in opened)


def test_the_cache_follows_the_content_of_the_shards(data):
    """A shard with the same name and length but other contents is another data set."""
    old = np.array(open_quietly(data).labels)
    shard = data / "train-00000.parquet"
    table = pq.read_table(shard)
    labels = pa.array([1 - value for value in table["label"].to_pylist()], pa.int64())
    size = shard.stat().st_size
    table = table.set_column(1, "label", labels)
    pq.write_table(table, shard, compression="none", use_dictionary=False, row_group_size=1024)
    assert shard.stat().st_size == size
    assert np.array_equal(open_quietly(data).labels, 1 - old)


@pytest.mark.parametrize("kind", ["cache", "entry"])
def test_links_are_not_followed_when_the_cache_is_cleared(data, tmp_path, kind):
    """A cache folder that is or contains a link does not cause deletions elsewhere."""
    home = tmp_path / "home"
    for name in ("train-runs", "train-0123456789abcdef", "train-00000000000000000000000000000000"):
        (home / name).mkdir(parents=True)
        (home / name / "values.npy").write_text("precious")
    if kind == "cache":
        (data / ".cache").symlink_to(home)
    else:
        (data / ".cache").mkdir()
        for path in home.iterdir():
            (data / ".cache" / path.name).symlink_to(path)
    if kind == "cache":
        with pytest.warns(UserWarning, match=r"\.cache can't be used, so the triples are kept in"):
            assert len(open_quietly(data)) > 0
    else:
        assert len(open_quietly(data)) > 0
    assert len(list(home.rglob("values.npy"))) == 3 and all(p.read_text() for p in home.rglob("values.npy"))


def test_only_what_was_derived_here_is_removed(data):
    """Folders with similar names or with other contents are preserved."""
    cache = data / ".cache"
    kept = ["train-runs", "train-0123456789abcdef", "train-0123456789abcde", "validation-0123456789abcdef"]
    for name in kept:
        (cache / name).mkdir(parents=True)
        (cache / name / "values.npy").write_text("x")
    (cache / kept[1] / "notes.txt").write_text("x")
    kept += ["train-runs.arrow", "validation-" + "0" * 32 + ".arrow", "train-" + "0" * 16]
    for name in kept[4:]:
        (cache / name).write_text("x")
    killed = ".dctransformer-0123456789abcdef.part"
    stale = ["train-" + "0" * 32, killed]
    for name in stale:
        (cache / name).mkdir()
        (cache / name / "values.npy").write_text("x")
    os.utime(cache / killed, (0, 0))
    stale.append("train-" + "0" * 32 + ".arrow")
    (cache / stale[-1]).write_text("x")
    open_quietly(data)
    names = {path.name for path in cache.iterdir()}
    assert names >= set(kept) and not names & set(stale)
    assert (cache / kept[1] / "notes.txt").exists()


def test_the_folder_of_an_earlier_version_is_removed(data):
    """The folder of an earlier version, with the name of the file without suffix, is removed."""
    open_quietly(data)
    old = arrow_file(data).with_suffix("")
    arrow_file(data).unlink()
    old.mkdir()
    for name in ("channels", "positions", "values", "offsets", "labels", "huffman_bytes", "heights", "widths"):
        np.save(old / f"{name}.npy", np.zeros(3))
    assert np.asarray(open_quietly(data).values).any() and not old.exists()


def test_another_users_cache_folder_is_not_used(data, monkeypatch):
    """A folder that another user can change is neither read nor removed."""
    (data / ".cache").mkdir()
    lstat = Path.lstat

    def foreign(path: Path) -> os.stat_result:
        facts = lstat(path)
        return os.stat_result([*facts[:4], 54321, *facts[5:10]]) if path.name == ".cache" else facts

    monkeypatch.setattr(Path, "lstat", foreign)
    with pytest.warns(UserWarning, match="can't be used"):
        store = open_quietly(data)
    assert len(store) and not list((data / ".cache").iterdir()) and not store.values.flags.owndata


@pytest.mark.parametrize("limit", [1000, 30_000])
def test_full_disk(data, limit):
    """A full disk (simulated by a file size limit) while columns are written or joined is handled."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(ValueError, match=r"the disk is full: .+ free some space"):
            open_quietly(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((data / ".cache").iterdir())
    open_quietly(data)
    assert arrow_file(data).stat().st_size > 30_000


def test_a_folder_that_can_only_be_read(data, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    expected = open_quietly(data)
    shutil.rmtree(data / ".cache")
    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.warns(UserWarning, match="kept in memory"):
        store = open_quietly(data)
    assert np.array_equal(store.values, expected.values) and np.array_equal(store.offsets, expected.offsets)
    assert not (data / ".cache").exists()


# Plain pictures -------------------------------------------------------------------------------------------------------


def test_plain_pictures_give_what_prepare_gives(photos, data):
    store = TripleStore.from_images(photos, SIZE, QUALITY)
    assert len(store) == 41 and store.info.labels == ["a", "b"] and store.skipped == []
    paths = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    place = {path: i for i, path in enumerate(paths)}
    for split in ("train", "validation"):
        other = open_quietly(data, split)
        for i, row in enumerate(stored(data, split)):
            index = place[row["image"]["path"]]
            assert torch.equal(store.triples(index), other.triples(i))
            assert store.labels[index] == other.labels[i]
            assert store.huffman_bytes[index] == other.huffman_bytes[i]


def test_one_picture_and_lists(photos, tmp_path):
    path = photos / "a" / "00.png"
    (tmp_path / "text.jpg").write_text("text")
    for given in (path, str(path), [path], [tmp_path / "text.jpg", str(path)]):
        store = TripleStore.from_images(given, SIZE, QUALITY)
        assert len(store) == 1 and store.labels.tolist() == [-1]
        assert torch.equal(store.triples(0), read_jpeg_bytes(prepare_image(path, SIZE, QUALITY)).to_triples()[0])
    assert [key for key, _ in store.skipped] == [str(tmp_path / "text.jpg")] and store.info.skipped == 1


def test_plain_pictures_that_are_no_use(tmp_path, photos):
    (tmp_path / "text.jpg").write_text("text")
    for given, size, quality, message in [
        ([], 32, 50, "there are no pictures that can be read"),
        ([tmp_path / "text.jpg"], 32, 50, "there are no pictures that can be read; the first: .+text"),
        (tmp_path / "nowhere", 32, 50, "there is no folder or file"),
        (photos, 30, 50, "size 30"),
        (photos, 32, 0, "quality 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            TripleStore.from_images(given, size, quality)


def test_real_photographs(tmp_path):
    paths = real_photographs(12)
    store = TripleStore.from_images(paths, 64, 20)
    assert len(store) == 12
    assert 300 < np.diff(store.offsets).mean() < 1200
    for i, path in enumerate(paths):
        assert torch.equal(store.triples(i), read_jpeg_bytes(prepare_image(path, 64, 20)).to_triples()[0])
