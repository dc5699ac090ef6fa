"""Tests of preparing data sets: output, sources, and failures on the way."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dctransformer.data import DatasetInfo, TripleStore, prepare
from dctransformer.data.images import prepare_image
from pictures import photo

preparing = importlib.import_module("dctransformer.data.prepare")
plan = importlib.import_module("dctransformer.data.plan")
shards = importlib.import_module("dctransformer.data.shards")
sources = importlib.import_module("dctransformer.data.sources")
hub = importlib.import_module("dctransformer.data.sources.hub")
folders = importlib.import_module("dctransformer.data.sources.folders")


def png(seed: int, height: int = 20, width: int = 24) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(height, width, seed)).save(out, "PNG")
    return out.getvalue()


def make_folder(root: Path, count: int = 30, labels: tuple[str, ...] = ("ant", "bee")) -> Path:
    for i in range(count):
        folder = root / labels[i % len(labels)] if labels else root
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i:03d}.png").write_bytes(png(i))
    return root


def run(source, out, **options) -> DatasetInfo:
    options = {"size": 16, "quality": 50, "val_fraction": 0.2, "workers": 1, "progress": False, **options}
    return prepare(source, out, **options)


def rows(out: Path, split: str | None = None) -> list[dict]:
    return [row for path in sorted(out.glob(f"{split or '*'}-*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(out: Path) -> dict[str, bytes]:
    """All files of a data set except the derived cache."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".cache" not in p.parts}


@pytest.fixture
def small_units(monkeypatch):
    """Use units and shards of a few pictures, so that a small folder gives several of each."""
    monkeypatch.setattr(plan, "UNIT", 4)
    monkeypatch.setattr(plan, "pictures_per_shard", lambda size: 12)


# What comes out -------------------------------------------------------------------------------------------------------


def test_a_folder_becomes_shards(tmp_path):
    photos, out = make_folder(tmp_path / "photos"), tmp_path / "out"
    info = run(photos, out)
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md", "dctransformer.json", "skipped.jsonl", "train-00000.parquet", "validation-00000.parquet",
    ]  # fmt: skip
    assert info == DatasetInfo.load(out)
    assert (info.size, info.quality, info.subsampling, info.labels) == (16, 50, "4:2:0", ["ant", "bee"])
    assert info.splits == {"train": len(rows(out, "train")), "validation": len(rows(out, "validation"))}
    assert sum(info.splits.values()) == 30 and info.splits["validation"] > 0 and info.skipped == 0
    for row in rows(out):
        path = row["image"]["path"]
        assert row["image"]["bytes"] == prepare_image(photos / path, 16, 50)
        assert info.labels[row["label"]] == path.split("/")[0]
        assert (row["width"], row["height"]) == (16, 16)
        assert Image.open(io.BytesIO(row["image"]["bytes"])).size == (16, 16)


def test_the_split_depends_on_names_alone(tmp_path):
    make_folder(tmp_path / "a", 40)
    make_folder(tmp_path / "b", 50)  # ten more
    run(tmp_path / "a", tmp_path / "outa")
    run(tmp_path / "b", tmp_path / "outb")
    of_a, of_b = ({row["image"]["path"] for row in rows(tmp_path / out, "validation")} for out in ("outa", "outb"))
    names_a = {row["image"]["path"] for row in rows(tmp_path / "outa")}
    assert of_a == of_b & names_a


def test_classes_are_mixed_within_a_shard(tmp_path):
    run(make_folder(tmp_path / "photos", 60), tmp_path / "out")
    labels = [row["label"] for row in rows(tmp_path / "out", "train")]
    assert 0 < sum(labels[:20]) < 20


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5])
def test_val_fraction(tmp_path, fraction):
    info = run(make_folder(tmp_path / "photos", 40), tmp_path / "out", val_fraction=fraction)
    held_out = info.splits["validation"]
    assert held_out == 0 if fraction == 0 else 1 <= held_out <= 30
    assert (tmp_path / "out" / "validation-00000.parquet").exists() == (fraction > 0)
    assert len(TripleStore.open(tmp_path / "out", "validation", progress=False)) == held_out


def test_folder_without_labels_and_with_mixed_depth(tmp_path):
    run(make_folder(tmp_path / "flat", 8, labels=()), tmp_path / "flat_out")
    assert "label" not in rows(tmp_path / "flat_out")[0]
    assert DatasetInfo.load(tmp_path / "flat_out").labels == []

    deep = make_folder(tmp_path / "deep", 6, labels=("ant/red", "bee"))
    (deep / "loose.png").write_bytes(png(99))
    (deep / ".hidden.png").write_bytes(b"no picture")
    (deep / "notes.txt").write_text("no picture")
    info = run(deep, tmp_path / "deep_out")
    labels = {row["image"]["path"]: row["label"] for row in rows(tmp_path / "deep_out")}
    assert info.labels == ["ant", "bee"] and info.skipped == 0 and len(labels) == 7
    assert labels["loose.png"] is None and labels["ant/red/000.png"] == 0 and labels["bee/001.png"] == 1
    store = TripleStore.open(tmp_path / "deep_out", "train", progress=False)
    assert set(store.labels) <= {-1, 0, 1}


def test_splits_of_the_source_are_kept(tmp_path):
    for split, count in (("train", 6), ("val", 3), ("test", 2)):
        make_folder(tmp_path / "photos" / split, count)
    info = run(tmp_path / "photos", tmp_path / "out", val_fraction=0.05)
    assert info.splits == {"train": 6, "validation": 3} and info.labels == ["ant", "bee"]
    assert all(row["image"]["path"].startswith("val/") for row in rows(tmp_path / "out", "validation"))


def test_a_class_called_train_is_a_class(tmp_path):
    info = run(make_folder(tmp_path / "photos", 9, ("train", "bus", "car")), tmp_path / "out")
    assert info.labels == ["bus", "car", "train"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    photos = make_folder(tmp_path / "photos", 4)
    make_folder(tmp_path / "elsewhere", 3, ())
    (photos / "cat").symlink_to(tmp_path / "elsewhere")
    (photos / "ant" / "round").symlink_to(photos)
    assert sum(run(photos, tmp_path / "out").splits.values()) == 7


def test_names_that_are_not_unicode(tmp_path):
    photos = make_folder(tmp_path / "photos", 3)
    try:
        with open(os.fsencode(photos / "ant") + b"/caf\xe9.png", "wb") as file:
            file.write(png(7))
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    info = run(photos, tmp_path / "out")
    assert sum(info.splits.values()) == 4


def test_unreadable_files_are_skipped_and_listed(tmp_path):
    photos = make_folder(tmp_path / "photos", 12)
    (photos / "ant" / "text.jpg").write_text("no picture")
    (photos / "bee" / "cut.png").write_bytes(png(3, 200, 200)[:900])
    (photos / "bee" / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (photos / "bee" / "empty.jpg").write_bytes(b"")
    (photos / "bee" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    for out, workers in (("one", 1), ("two", 2)):
        info = run(photos, tmp_path / out, workers=workers)
        listed = [json.loads(line) for line in (tmp_path / out / "skipped.jsonl").read_text().splitlines()]
        assert [line["path"] for line in listed] == [
            "ant/text.jpg", "bee/cut.png", "bee/empty.jpg", "bee/gone.jpg", "bee/phone.heic",
        ]  # fmt: skip
        assert all(line["reason"] for line in listed)
        assert info.skipped == 5 and sum(info.splits.values()) == 12 == len(rows(tmp_path / out))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_hugging_face_reads_it(tmp_path):
    datasets = pytest.importorskip("datasets")
    info = run(make_folder(tmp_path / "photos"), tmp_path / "out")
    for split in ("train", "validation"):
        TripleStore.open(tmp_path / "out", split, progress=False)  # the cache must not be taken for data
    for where in ({"path": "parquet", "data_dir": str(tmp_path / "out")}, {"path": str(tmp_path / "out")}):
        data = datasets.load_dataset(**where, cache_dir=str(tmp_path / "cache"))
        assert {split: len(part) for split, part in data.items()} == info.splits
        features = data["train"].features
        assert isinstance(features["image"], datasets.Image)
        assert features["label"].names == ["ant", "bee"]
        row = data["train"][0]
        assert row["image"].size == (16, 16) and row["label"] in (0, 1) and row["width"] == 16


# Other sources --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["hugging face", "plain bytes", "paths"])
def test_parquet_sources(tmp_path, convention):
    photos = make_folder(tmp_path / "photos", 30)
    names = sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    data = [(photos / name).read_bytes() for name in names]
    if convention == "hugging face":
        features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
        table = pa.table(
            {"img": [{"bytes": b, "path": None} for b in data], "label": [int(n[0] == "b") for n in names]}
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    elif convention == "plain bytes":
        table = pa.table({"id": list(range(30)), "jpg": data, "label": [n.split("/")[0] for n in names]})
    else:
        table = pa.table(
            {"image": [{"bytes": None, "path": n} for n in names], "class": [int(n[0] == "b") for n in names]}
        )
    source = photos if convention == "paths" else tmp_path / "parquet"
    source.mkdir(exist_ok=True)
    pq.write_table(table.slice(0, 14), source / "data-0.parquet", row_group_size=4)
    pq.write_table(table.slice(14), source / "data-1.parquet", row_group_size=5)
    if convention == "paths":
        info = run(source / "data-0.parquet", tmp_path / "out")
        names, data = names[:14], data[:14]
        assert info.labels == ["0"]
    else:
        info = run(source, tmp_path / "out", workers=2)
        assert info.labels == ["ant", "bee"]
    result = rows(tmp_path / "out")
    assert len(result) == len(data) and info.skipped == 0
    for row in result:
        file, number = row["image"]["path"].split("#")
        index = int(number) + (14 if file == "data-1.parquet" else 0)
        assert row["image"]["bytes"] == prepare_image(data[index], 16, 50)
        if convention != "paths":
            assert info.labels[row["label"]] == names[index].split("/")[0]


def test_parquet_rows_without_a_picture_are_skipped(tmp_path):
    cells = [{"bytes": png(i), "path": None} for i in range(6)]
    cells[2] = {"bytes": None, "path": None}
    cells[4] = {"bytes": b"no picture", "path": None}
    pq.write_table(pa.table({"image": cells}), tmp_path / "data.parquet")
    info = run(tmp_path / "data.parquet", tmp_path / "out")
    listed = [json.loads(line)["path"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert listed == ["data.parquet#2", "data.parquet#4"] and info.skipped == 2


def test_parquet_keeps_its_splits(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name, count in (("train-00000-of-00001", 7), ("validation-00000-of-00001", 3), ("test-00000-of-00001", 2)):
        pq.write_table(pa.table({"image": [png(i) for i in range(count)]}), source / f"{name}.parquet")
    assert run(source, tmp_path / "out").splits == {"train": 7, "validation": 3}


def test_a_prepared_data_set_can_be_prepared_again(tmp_path):
    first = run(make_folder(tmp_path / "photos"), tmp_path / "first", size=32)
    second = run(tmp_path / "first", tmp_path / "again")
    assert second.splits == first.splits and second.labels == first.labels


def test_parquet_that_is_no_use(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match="no column of pictures"):
        run(tmp_path / "text.parquet", tmp_path / "out")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(ValueError, match="not a readable Parquet file"):
        run(tmp_path / "broken.parquet", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def dataset_of(datasets, count: int = 12):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    cells = {"image": [{"bytes": png(i), "path": None} for i in range(count)], "label": [i % 2 for i in range(count)]}
    return datasets.Dataset.from_dict(cells, features=features)


def test_datasets_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = dataset_of(datasets)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "dict")
    for name, workers in (("one", 1), ("dict", 2)):
        info = run(tmp_path / name, tmp_path / f"out_{name}", workers=workers)
        assert sum(info.splits.values()) == 12 and info.labels == ["ant", "bee"]
        for row in rows(tmp_path / f"out_{name}"):
            index = int(row["image"]["path"].split("#")[1])
            assert row["image"]["bytes"] == prepare_image(png(index), 16, 50) and row["label"] == index % 2


def test_datasets_id(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, config):
        asked.append((name, config))
        return datasets.DatasetDict({"train": dataset_of(datasets), "validation": dataset_of(datasets, 3)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub.huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "nothing yet"))
    with pytest.warns(UserWarning, match="no folder someone/insects:small here; fetching the data set someone/insects"):
        info = run("someone/insects:small", tmp_path / "out")
    assert info.splits == {"train": 12, "validation": 3}
    assert asked == [("someone/insects", "small")]


def test_datasets_id_that_does_not_exist(tmp_path, monkeypatch):
    pytest.importorskip("datasets")

    def unknown(*_, **__):
        raise RuntimeError("404: no such repository.\nmore about it")

    monkeypatch.setattr(hub.huggingface_hub.HfApi, "dataset_info", unknown)
    with pytest.raises(ValueError, match=r"flowrs is neither .+ \(404: no such repository\); check the name"):
        run("flowrs", tmp_path / "out")


def test_what_datasets_has_loaded(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = dataset_of(datasets)
    info = run(datasets.DatasetDict({"train": data, "test": data.select([0])}), tmp_path / "out")
    assert sum(info.splits.values()) == 12 and info.labels == ["ant", "bee"] and "loaded" in info.source
    data.save_to_disk(tmp_path / "saved")
    run(tmp_path / "saved", tmp_path / "saved_out")
    run(data, tmp_path / "data_out", workers=2)
    assert rows(tmp_path / "data_out") == rows(tmp_path / "saved_out")
    for wrong in (data.to_iterable_dataset(), 7, {}):
        with pytest.raises(ValueError, match="is no source; give a path"):
            run(wrong, tmp_path / "wrong")


def shards_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.parquet")}


@pytest.mark.parametrize("where", ["file", "memory"])
def test_urls(tmp_path, where):
    import fsspec

    photos = make_folder(tmp_path / "photos", 12)
    (photos / "bee" / "broken.png").write_bytes(b"no picture")
    (photos / ".hidden.png").write_bytes(b"no picture")
    run(photos, tmp_path / "here")
    root = tmp_path.as_uri()
    if where == "memory":  # a file system that fsspec has and pyarrow does not
        root = f"memory://{tmp_path.name}"
        fsspec.filesystem("memory").put(str(photos), f"/{tmp_path.name}/photos", recursive=True)
        fsspec.filesystem("memory").put(str(tmp_path / "here"), f"/{tmp_path.name}/here", recursive=True)
    info = run(f"{root}/photos", tmp_path / "there", workers=2)
    # The reason for skipping a picture names its file if there is one, so the bytes differ.
    assert rows(tmp_path / "there") == rows(tmp_path / "here") and info.skipped == 1
    assert info.source == f"{root}/photos" and info.fingerprint == DatasetInfo.load(tmp_path / "here").fingerprint
    run(tmp_path / "here", tmp_path / "again")
    run(f"{root}/here", tmp_path / "again_there")
    assert shards_of(tmp_path / "again_there") == shards_of(tmp_path / "again") != {}
    one = f"{root}/here/train-00000.parquet"
    assert sum(run(one, tmp_path / "one").splits.values()) == len(rows(tmp_path / "here", "train"))
    with pytest.raises(ValueError, match="nowhere can't be listed"):
        run(f"{root}/nowhere", tmp_path / "nothing")
    with pytest.raises(ValueError, match="check the address"):
        run("ftq://nowhere", tmp_path / "nothing")


def test_transient_network_errors_are_retried(tmp_path, monkeypatch):
    photos = make_folder(tmp_path / "photos", 4)
    listing = sources.open_source(photos.as_uri())
    failures = [OSError("connection reset"), OSError("connection reset")]
    slept = []

    class Shaky:
        def open_input_file(self, path):
            if failures:
                raise failures.pop()
            return Path(path).open("rb")

    listing.filesystem = Shaky()
    monkeypatch.setattr(folders.time, "sleep", slept.append)
    assert listing.read(0) == (photos / listing.items[0].key).read_bytes() and len(slept) == 2
    failures += [OSError("connection reset")] * 3
    with pytest.raises(OSError, match="reset"):
        listing.read(0)


# The same whatever happens --------------------------------------------------------------------------------------------


def test_workers_do_not_change_the_result(tmp_path, small_units):
    photos = make_folder(tmp_path / "photos", 50)
    for workers in (1, 2, 3):
        run(photos, tmp_path / f"out{workers}", workers=workers)
    assert contents(tmp_path / "out1") == contents(tmp_path / "out2") == contents(tmp_path / "out3")
    assert len(list((tmp_path / "out1").glob("train-*.parquet"))) > 2


@pytest.mark.parametrize("stop_after", [0, 1, 17, 33, 49])
def test_an_interrupted_run_continues(tmp_path, small_units, monkeypatch, stop_after):
    photos = make_folder(tmp_path / "photos", 50)
    (photos / "ant" / "broken.png").write_bytes(b"")
    run(photos, tmp_path / "whole")
    calls = []

    def counting(*args):
        calls.append(args)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return prepare_image(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "prepare_image", counting)
        with pytest.raises(KeyboardInterrupt):
            run(photos, tmp_path / "out")
    assert not (tmp_path / "out" / "dctransformer.json").exists()
    with pytest.raises(ValueError, match="no prepared data set"):
        DatasetInfo.load(tmp_path / "out")

    stop_after, first = 10**9, len(calls)
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "prepare_image", counting)
        run(photos, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert first + len(calls) <= 51 + plan.UNIT  # only the interrupted unit is repeated


def test_interrupted_while_finishing(tmp_path, small_units, monkeypatch):
    photos = make_folder(tmp_path / "photos", 20)
    run(photos, tmp_path / "whole")
    for module, name in ((shards, "join"), (preparing, "_finish"), (preparing, "write_text")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                run(photos, tmp_path / name)
        run(photos, tmp_path / name)
        assert contents(tmp_path / name) == contents(tmp_path / "whole")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks /proc for the workers")
def test_a_killed_run_leaves_no_workers_and_continues(tmp_path, small_units):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    large = png(0, 300, 300)
    for i in range(100):
        (photos / f"{i}.png").write_bytes(large)
    script = """if True:
        import importlib, sys

        class NoTorch:  # importing PyTorch takes seconds, and `prepare` does not need it
            def find_spec(self, name, *_):
                assert name != "torch"

        sys.meta_path.insert(0, NoTorch())
        preparing = importlib.import_module("dctransformer.data.prepare")
        plan = importlib.import_module("dctransformer.data.plan")
        plan.UNIT, plan.pictures_per_shard = 4, lambda pixels: 12
        preparing.prepare(sys.argv[1], sys.argv[2], size=16, workers=2)
    """
    process = subprocess.Popen([sys.executable, "-c", script, photos, out], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300  # far more than needed, even on a busy machine
    while not any(out.glob("*.parquet")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    assert len(workers) == 2 and not (out / "dctransformer.json").exists()
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(alive(pid) for pid in workers)
    options = {"size": 16, "quality": 20, "val_fraction": 0.05}
    run(photos, out, **options)
    run(photos, tmp_path / "whole", **options)
    assert contents(out) == contents(tmp_path / "whole")


def alive(pid: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    return False


def test_the_same_call_again_does_nothing(tmp_path, monkeypatch):
    photos, out = make_folder(tmp_path / "photos"), tmp_path / "out"
    first = run(photos, out)
    before = contents(out)
    monkeypatch.setattr(shards, "prepare_image", None)
    assert run(photos, out) == first and contents(out) == before


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", [{"size": 32}, {"quality": 51}, {"val_fraction": 0.1}, {}])
def test_other_settings_for_the_same_folder_are_refused(tmp_path, monkeypatch, finished, change):
    photos, out = make_folder(tmp_path / "photos", 6), tmp_path / "out"
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(preparing, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with contextlib.suppress(KeyboardInterrupt):
            run(photos, out)
    before = contents(out)
    if not change:
        (photos / "ant" / "new.png").write_bytes(png(77))
    name = next(iter(change), "other pictures")
    kind = "a data set" if finished else "an unfinished data set"
    with pytest.raises(ValueError, match=f"{kind} (with|made from) {name}.*choose another folder or delete it"):
        run(photos, out, **change)
    assert contents(out) == before


# What goes wrong ------------------------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("stage", ["piece", "shard", "settings"])
def test_full_disk(tmp_path, monkeypatch, small_units, stage):
    photos, out = make_folder(tmp_path / "photos", 30), tmp_path / "out"
    run(photos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if stage == "piece":
            write, count = Path.write_bytes, iter(range(100))
            patch.setattr(Path, "write_bytes", lambda path, data: full() if next(count) == 3 else write(path, data))
        elif stage == "shard":
            write, count = pq.write_table, iter(range(100))
            patch.setattr(pq, "write_table", lambda *a, **k: full() if next(count) == 1 else write(*a, **k))
        else:
            patch.setattr(Path, "write_text", full)
        with pytest.raises(ValueError, match=r"the disk is full: .+ free some space and run the command again"):
            run(photos, out)
    assert not (out / "dctransformer.json").exists()
    assert not list(out.rglob("*.part"))
    run(photos, out)
    assert contents(out) == contents(tmp_path / "whole")


forked = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers don't inherit what a test patches")


@forked
def test_full_disk_in_a_worker(tmp_path, monkeypatch, small_units):
    photos = make_folder(tmp_path / "photos", 30)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match="the disk is full"):
        run(photos, tmp_path / "out", workers=2)


@forked
def test_a_killed_worker_is_reported(tmp_path, monkeypatch, small_units):
    photos = make_folder(tmp_path / "photos", 30)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "prepare_image", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        with pytest.raises(ValueError, match="a worker process was killed"):
            run(photos, tmp_path / "out", workers=2)
    assert sum(run(photos, tmp_path / "out", workers=2).splits.values()) == 30


def test_damaged_pieces_are_made_anew(tmp_path, small_units, monkeypatch):
    photos, out = make_folder(tmp_path / "photos", 9), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shards, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(photos, out)
    next((out / ".partial").glob("*.arrow")).write_bytes(b"")
    with pytest.raises(ValueError, match=r"was damaged .+ run the command again"):
        run(photos, out)
    assert sum(run(photos, out).splits.values()) == 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size 0 is not a positive multiple of 16"),
        ({"size": 40}, "size 40 is not a positive multiple of 16"),
        ({"quality": 0}, "quality 0 is not a whole number from 1 to 100"),
        ({"quality": 101}, "quality 101 is not a whole number from 1 to 100"),
        ({"val_fraction": 1.0}, "val_fraction 1.0 is not in"),
        ({"val_fraction": -0.1}, "val_fraction -0.1 is not in"),
        ({"val_fraction": float("nan")}, "val_fraction nan is not in"),
        ({"workers": 0}, "workers 0 is less than 1"),
    ],
)
def test_arguments_out_of_range(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        run(make_folder(tmp_path / "photos", 2), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_no_use(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.jpg").write_text("text")
    for name, message in [
        ("missing", "there is no folder or file .+missing; check the path"),
        ("empty", "the folder .+empty is empty; give a folder that holds pictures"),
        ("texts", "texts holds no pictures; give a folder of image files"),
        ("texts/a.txt", r"a\.txt is a file; give a folder of pictures"),
        ("broken", r"none of the 1 pictures of .+broken can be used; the first: .+a\.jpg can't be read"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            run(tmp_path / name, tmp_path / "new" / "out")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "new").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="can be used"):
        run(tmp_path / "broken", tmp_path / "out")
    assert not contents(tmp_path / "out")  # a folder that existed before is kept


def test_outputs_that_are_no_use(tmp_path):
    photos = make_folder(tmp_path / "photos", 3)
    with pytest.raises(ValueError, match="both source and output"):
        run(photos, photos)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="file is a file; choose a folder"):
        run(photos, tmp_path / "file")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train-00000.parquet").write_text("mine")
    with pytest.raises(ValueError, match="full holds other files; choose a new or empty folder"):
        run(photos, tmp_path / "full")
    assert contents(tmp_path / "full") == {"train-00000.parquet": b"mine"}
    with pytest.raises(ValueError, match="a file is in the way"):
        run(photos, tmp_path / "file" / "below")


def test_the_output_may_lie_in_the_source(tmp_path):
    photos = make_folder(tmp_path / "photos", 5)
    first = run(photos, photos / "prepared")
    assert run(photos, photos / "prepared") == first


def test_info_that_is_damaged_or_newer(tmp_path):
    run(make_folder(tmp_path / "photos", 3), tmp_path / "out")
    path = tmp_path / "out" / "dctransformer.json"
    good = json.loads(path.read_text())
    for text, message in [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({**good, "format": 3}), "newer version"),
        (json.dumps({"format": 1}), "is damaged"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            DatasetInfo.load(tmp_path / "out")


def test_a_missing_folder_is_reported_before_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder, which could be a data set of the hub, is reported before a missing library."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"no file or folder nowhere; .* needs the `datasets` library"):
        prepare("nowhere", tmp_path / "out", size=32, quality=30, workers=1)


# Small sets, changed sources, additions -------------------------------------------------------------------------------


def names(count: int, held_out: bool, fraction: float = 0.2) -> list[str]:
    """File names whose hash selects them for the held-out split, or for training."""
    candidates = (f"{i}.png" for i in range(10_000))
    ranks = ((name, sources.Item(name, None, None).rank < fraction * 2**64) for name in candidates)
    return [name for name, is_held_out in ranks if is_held_out == held_out][:count]


@pytest.mark.parametrize("pictures", [1, 2, 5])
def test_a_set_has_a_training_part_whatever_can_be_read(tmp_path, pictures):
    """If all training pictures are broken, a held-out picture replaces them."""
    (tmp_path / "photos").mkdir()
    for name in names(3, held_out=False):
        (tmp_path / "photos" / name).write_bytes(b"")
    for i, name in enumerate(names(pictures, held_out=True)):
        (tmp_path / "photos" / name).write_bytes(png(i))
    info = run(tmp_path / "photos", tmp_path / "out")
    assert info.splits == {"train": 1, "validation": pictures - 1} and info.skipped == 3
    keys = [row["image"]["path"] for row in rows(tmp_path / "out")]
    assert sorted(keys) == sorted(names(pictures, held_out=True))
    assert len(TripleStore.open(tmp_path / "out", "train", progress=False)) == 1


def test_the_part_held_out_is_drawn_among_what_can_be_read(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    for i, name in enumerate(names(4, held_out=False)):
        (tmp_path / "photos" / name).write_bytes(png(i))
    (tmp_path / "photos" / names(1, held_out=True)[0]).write_bytes(b"")
    info = run(tmp_path / "photos", tmp_path / "out")
    assert info.splits == {"train": 3, "validation": 1} and info.skipped == 1
    # The same after an interruption between the two files that the move writes.
    write, count = shards._write, []

    def stop(*args):
        write(*args)
        count.append(args)
        if len(count) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "_write", stop)
        run(tmp_path / "photos", tmp_path / "again")
    run(tmp_path / "photos", tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_one_picture_and_large_parts(tmp_path):
    make_folder(tmp_path / "one", 1, ())
    for fraction in (0.05, 0.999):
        assert run(tmp_path / "one", tmp_path / f"out{fraction}", val_fraction=fraction).splits["train"] == 1
    make_folder(tmp_path / "three", 3, ())
    assert run(tmp_path / "three", tmp_path / "out", val_fraction=0.9999).splits == {"train": 1, "validation": 2}


def test_a_source_whose_training_part_is_broken(tmp_path):
    make_folder(tmp_path / "photos" / "val", 2)
    (tmp_path / "photos" / "train").mkdir()
    (tmp_path / "photos" / "train" / "a.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the training pictures of .+ can be used"):
        run(tmp_path / "photos", tmp_path / "out")


@pytest.mark.parametrize("finished", [True, False])
def test_changed_files_under_old_names_are_noticed(tmp_path, monkeypatch, finished):
    photos = make_folder(tmp_path / "photos", 6)
    with monkeypatch.context() as patch:
        if not finished:
            patch.setattr(preparing, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with contextlib.suppress(KeyboardInterrupt):
            run(photos, tmp_path / "out")
    (photos / "ant" / "000.png").write_bytes(png(77, 50, 60))
    with pytest.raises(ValueError, match="made from files that have changed since"):
        run(photos, tmp_path / "out")


def test_an_update_adds_what_is_new_and_leaves_the_rest(tmp_path):
    photos = make_folder(tmp_path / "photos", 12)
    (photos / "ant" / "late.png").write_bytes(b"")
    first = run(photos, tmp_path / "out", labels="folders")
    before = shards_of(tmp_path / "out")
    assert first.skipped == 1
    (photos / "ant" / "late.png").write_bytes(png(50))
    for i in range(20):
        (photos / "cow").mkdir(exist_ok=True)
        (photos / "cow" / f"{i}.png").write_bytes(png(100 + i))
    with pytest.raises(ValueError, match="use --update to add what is new"):
        run(photos, tmp_path / "out")
    info = run(photos, tmp_path / "out", update=True)
    after = shards_of(tmp_path / "out")
    assert {name: after[name] for name in before} == before and len(after) == len(before) + 2
    assert info.labels == ["ant", "bee", "cow"] and sum(info.splits.values()) == 33 and info.skipped == 0
    whole = run(photos, tmp_path / "whole")
    assert info == dataclasses.replace(whole) and sum(whole.splits.values()) == 33
    for row in rows(tmp_path / "out"):
        assert info.labels[row["label"]] == row["image"]["path"].split("/")[0]
    of_update, of_whole = (
        {row["image"]["path"] for row in rows(tmp_path / out, "validation")} for out in ("out", "whole")
    )
    assert of_update == of_whole
    assert len(TripleStore.open(tmp_path / "out", "train", progress=False)) == info.splits["train"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert """'2': "cow\"""" in card and "class_label" not in (tmp_path / "whole" / "README.md").read_text()
    assert run(photos, tmp_path / "out", update=True) == info and shards_of(tmp_path / "out") == after
    assert run(photos, tmp_path / "out") == info


def test_an_interrupted_update_leaves_a_whole_data_set_and_goes_on(tmp_path, small_units, monkeypatch):
    photos = make_folder(tmp_path / "photos", 20)
    first = run(photos, tmp_path / "out")
    make_folder(photos, 60)
    calls = []

    def stop(*args):
        calls.append(args)
        if len(calls) > 30:
            raise KeyboardInterrupt
        return prepare_image(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shards, "prepare_image", stop)
        run(photos, tmp_path / "out", update=True)
    assert DatasetInfo.load(tmp_path / "out") == first
    assert len(TripleStore.open(tmp_path / "out", "train", progress=False)) == first.splits["train"]
    info = run(photos, tmp_path / "out", update=True)
    assert sum(info.splits.values()) == 60 == len({row["image"]["path"] for row in rows(tmp_path / "out")})


def test_a_data_folder_in_use_is_refused(tmp_path, monkeypatch):
    photos = make_folder(tmp_path / "photos", 4)

    def another(*_):
        with pytest.raises(ValueError, match=rf"out is in use by process {os.getpid()} on .+ since"):
            run(photos, tmp_path / "out")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preparing, "_finish", another)
        run(photos, tmp_path / "out")
    assert sum(run(photos, tmp_path / "out").splits.values()) == 4


def test_it_prints_what_it_took_for_labels_and_splits(tmp_path, capsys):
    photos = make_folder(tmp_path / "photos", 5)
    (photos / "loose.png").write_bytes(png(9))
    (photos / "test\x1b[31m").mkdir()
    (photos / "test\x1b[31m" / "a.png").write_bytes(png(10))
    run(photos, tmp_path / "out", progress=True, val_fraction=0)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("labels: 3 from folders: ant (3), bee (2), test\\x1b[31m (1); 1 pictures without")
    assert "splits: train 7, validation 0 (drawn by name)" in lines
    assert "note: 1 pictures have no label" in lines


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", [1, 2]), ("labels", "ab"), ("labels", ["a", "a"]), ("size", "16"), ("size", 16.0), ("size", True),
        ("size", 17), ("quality", 0), ("quality", None), ("splits", {"train": "4"}), ("splits", {"train": -4}),
        ("splits", []), ("splits", {"x": 1}), ("val_fraction", "0"), ("val_fraction", 2), ("subsampling", "4:4:4"),
        ("format", True), ("format", "1"), ("skipped", -1), ("source", ["x"]), ("extra", 1),
    ],
)  # fmt: skip
def test_every_field_of_the_settings_is_checked_when_a_set_is_opened(tmp_path, field, value):
    fields = DatasetInfo(size=16, quality=50, splits={"train": 1, "validation": 0}).to_dict()
    (tmp_path / "dctransformer.json").write_text(json.dumps({**fields, field: value}))
    with pytest.raises(ValueError, match=r"dctransformer\.json is damaged \(.+\); prepare the data again"):
        DatasetInfo.load(tmp_path)
    (tmp_path / "dctransformer.json").write_text(json.dumps(fields))
    assert DatasetInfo.load(tmp_path).quality == 50
