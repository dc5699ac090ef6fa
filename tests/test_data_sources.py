"""Tests of finding pictures, labels and splits in folders, tables and archives."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dctransformer.data import DatasetInfo, TripleStore, prepare
from dctransformer.data.sources import Item, Source, open_source
from dctransformer.data.sources.base import number_labels
from pictures import photo


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(photo(20, 24, seed)).save(out, "PNG")
    return out.getvalue()


PNG = png()


def tree(root: Path, *paths: str, **files: str) -> Path:
    """A folder with pictures at the given paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(PNG)
    return root


def labelled(source: Source) -> dict[str, str | None]:
    return {item.key: None if item.label is None else source.labels[item.label] for item in source.items}


def splits(source: Source) -> dict[str, str | None]:
    return {item.key: item.split for item in source.items}


def table(path: Path, **columns) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def cells(count: int) -> list[dict]:
    return [{"bytes": png(i), "path": None} for i in range(count)]


# Splits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "labels", "expected"),
    [
        (["Train/cat/1.png", "Train/dog/2.png", "Val/cat/3.png", "Test/dog/4.png"], ["cat", "dog"], "test train val"),
        (["train/cat/1.png", "train/dog/2.png", "eval/cat/3.png"], ["cat", "dog"], "train val"),
        (["train/cat/1.png", "train/dog/2.png"], ["cat", "dog"], "train"),
        (["train/1.png", "val/2.png"], [], "train val"),
        (["data/train/cat/1.png", "data/val/cat/2.png"], ["cat"], "train val"),
        (["a/b/train/cat/1.png", "a/b/VALID/dog/2.png"], ["cat", "dog"], "train val"),
        (["train/images/1.png", "val/images/2.png"], [], "train val"),
        (["train/cat/1.png", "bus/2.png", "car/3.png"], ["bus", "car", "train"], "None"),
    ],
)
def test_folders_that_are_splits(paths, labels, expected, tmp_path):
    source = open_source(tree(tmp_path, *paths))
    assert source.labels == labels
    assert " ".join(sorted(str(s) for s in set(splits(source).values()))).replace("validation", "val") == expected


def test_a_stray_file_next_to_splits_is_listed_as_skipped(tmp_path):
    photos = tree(tmp_path / "photos", "train/cat/1.png", "train/dog/2.png", "val/cat/3.png", "preview.png")
    info = prepare(photos, tmp_path / "out", size=16, workers=1, progress=False)
    assert info.labels == ["cat", "dog"] and info.splits == {"train": 2, "validation": 1} and info.skipped == 1
    assert (
        "preview.png can't be read (it lies next to the folders train, val"
        in (tmp_path / "out" / "skipped.jsonl").read_text()
    )


def test_splits_with_other_folders_next_to_them_are_classes_and_it_is_reported(tmp_path):
    source = open_source(tree(tmp_path, "train/1.png", "val/2.png", "extra/3.png"))
    assert source.labels == ["extra", "train", "val"]
    assert source.notes == [
        "train, val are taken for classes, not for splits, because there are other folders next to them (extra)"
    ]


def test_pictures_next_to_annotations(tmp_path):
    source = open_source(tree(tmp_path, "images/1.png", "annotations/trimaps/1.png"))
    assert [item.key for item in source.items] == ["images/1.png"] and source.labels == []
    assert source.notes == ["only images is taken, not annotations"]
    source = open_source(tree(tmp_path / "deep", "images/cat/1.png", "images/dog/1.png", "masks/1.png"))
    assert source.labels == ["cat", "dog"]


# Labels ---------------------------------------------------------------------------------------------------------------


def test_folders_that_systems_make_are_left_out(tmp_path):
    photos = tree(
        tmp_path, "cat/a.png", "cat/@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg", "@eaDir/b.jpg", "__MACOSX/cat/c.png",
        "dog/.thumbnails/d.png", "dog/e.png", "$RECYCLE.BIN/f.png", "dog/._e.png",
    )  # fmt: skip
    source = open_source(photos)
    assert labelled(source) == {"cat/a.png": "cat", "dog/e.png": "dog"}
    assert "left out: 2 files in folders named @eaDir" in source.notes
    assert "left out: 1 file in folders named __MACOSX" in source.notes


def test_stylegan_labels(tmp_path):
    paths = [f"{i // 4:05d}/img{i:08d}.png" for i in range(8)]
    tree(tmp_path, *paths)
    metadata = tmp_path / "dataset.json"
    metadata.write_text(json.dumps({"labels": [[path, i % 2] for i, path in enumerate(paths)]}))
    source = open_source(tmp_path)
    assert labelled(source) == {path: str(i % 2) for i, path in enumerate(paths)}
    assert source.labels_from == "dataset.json"
    assert open_source(tmp_path, labels="none").labels == []
    assert open_source(tmp_path, labels="folders").labels == ["00000", "00001"]
    metadata.write_text(json.dumps({"labels": None}))
    assert open_source(tmp_path).labels == []
    metadata.write_text(json.dumps({"labels": [[path, [0.5, 0.5]] for path in paths]}))
    source = open_source(tmp_path)
    assert source.labels == ["00000", "00001"] and "lists of numbers, not classes" in source.notes[0]


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_hugging_face_metadata(tmp_path, suffix):
    tree(tmp_path, "train/x/a.png", "train/x/b.png", "train/x/c.png", "test/x/a.png")
    rows = [("x/a.png", "cat", 7), ("x/b.png", "dog", 8)]
    lines = {
        "jsonl": [json.dumps({"file_name": f, "label": n, "id": i}) for f, n, i in rows],
        "csv": ["file_name,label,id", *(f"{f},{n},{i}" for f, n, i in rows)],
    }[suffix]
    (tmp_path / "train" / f"metadata.{suffix}").write_text("\n".join(lines))
    source = open_source(tmp_path)
    assert labelled(source) == {
        "test/x/a.png": None, "train/x/a.png": "cat", "train/x/b.png": "dog", "train/x/c.png": None,
    }  # fmt: skip
    assert splits(source)["test/x/a.png"] == "test" and "2 pictures have no label" in source.notes
    assert open_source(tmp_path, labels="id").labels == ["7", "8"]
    with pytest.raises(ValueError, match="--labels colour is neither a file nor a column"):
        open_source(tmp_path, labels="colour")


def test_metadata_without_labels_is_reported(tmp_path):
    tree(tmp_path, "cat/a.png", "dog/b.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/a.png,a cat\n")
    source = open_source(tmp_path)
    assert source.labels == ["cat", "dog"]
    assert source.notes == [
        "metadata.csv has no column called label (there are: file_name, text); --labels COLUMN chooses one"
    ]


def test_a_table_of_labels_that_is_named(tmp_path):
    photos = tree(tmp_path / "photos", "1/a.png", "1/b.png", "2/c.png")
    (tmp_path / "labels.csv").write_text("id,breed\na,pug\nb.png,corgi\n2/c.png,pug\n".replace("breed", "class"))
    source = open_source(photos, labels=str(tmp_path / "labels.csv"))
    assert labelled(source) == {"1/a.png": "pug", "1/b.png": "corgi", "2/c.png": "pug"}
    (tmp_path / "labels.json").write_text(json.dumps({"a": 2, "b": 10, "c": 2}))
    assert open_source(photos, labels=str(tmp_path / "labels.json")).labels == ["2", "10"]
    (tmp_path / "labels.csv").write_text("id,class\nx,pug\n")
    with pytest.raises(ValueError, match="names none of the pictures"):
        open_source(photos, labels=str(tmp_path / "labels.csv"))


def test_numbers_are_in_numeric_order(tmp_path):
    source = open_source(tree(tmp_path, *(f"{i}/a.png" for i in range(12))))
    assert source.labels == [str(i) for i in range(12)] and labelled(source)["10/a.png"] == "10"


@pytest.mark.parametrize(
    ("values", "labels", "numbers"),
    [
        ([-1, *range(12)], [str(i) for i in range(12)], [None, *range(12)]),
        ([7, 20_000_000, 5, 10**18], ["5", "7", "20000000", str(10**18)], [1, 2, 0, 3]),
        ([True, False, None], ["False", "True"], [1, 0, None]),
        ([0.0, None, 1.0, float("nan")], ["0", "1"], [0, None, 1, None]),
        (["b", "", "a", b"b"], ["a", "b"], [1, None, 0, 1]),
        (["10", "9", "-1"], ["9", "10"], [1, 0, None]),
        ([unicodedata.normalize(form, "Café") for form in ("NFC", "NFD")], ["Café"], [0, 0]),
        ([], [], []),
    ],
)
def test_how_labels_are_numbered(values, labels, numbers):
    assert number_labels(values) == (labels, numbers)


@pytest.mark.parametrize("value", [0.5, [1], {"a": 1}])
def test_values_that_are_no_labels(value):
    with pytest.raises(ValueError, match=r"a (number that is not whole|list|dict)"):
        number_labels([0, value])


def test_two_spellings_of_a_class(tmp_path):
    nfc, nfd = (unicodedata.normalize(form, "Café") for form in ("NFC", "NFD"))
    source = open_source(tree(tmp_path, f"{nfc}/a.png", f"{nfd}/b.png", "Rose/a.png", "rose/b.png"))
    if len({item.key for item in source.items}) < 4:
        pytest.skip("this file system normalises names")
    assert source.labels == ["Café", "Rose", "rose"]
    assert source.notes == ["the labels Rose and rose differ in case only: --label can't distinguish them"]
    assert Item(f"{nfc}/a.png", None, None).rank == Item(f"{nfd}/a.png", None, None).rank


# Tables ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", "b", "a"], pa.string_view()), ["a", "b"]),
        (pa.array([True, False, True]), ["False", "True"]),
        (pa.array([0.0, None, 1.0]), ["0", "1"]),
        (pa.array([-1, 20_000_000, 3]), ["3", "20000000"]),
    ],
)
def test_columns_of_labels(column, labels, tmp_path):
    assert open_source(table(tmp_path / "a.parquet", image=cells(3), label=column)).labels == labels


def test_columns_that_are_no_labels_are_reported(tmp_path):
    source = open_source(table(tmp_path / "a.parquet", image=cells(2), label=[[1], [2]], name=["x", "y"]))
    assert source.labels == [] and source.notes == ["the column label holds list<element: int64>: not used as labels"]
    source = open_source(table(tmp_path / "b.parquet", image=cells(2), label=[0.5, 0.25]))
    assert source.labels == [] and "a number that is not whole: not used as labels" in source.notes[0]
    assert open_source(tmp_path / "a.parquet", labels="name").labels == ["x", "y"]
    assert open_source(tmp_path / "a.parquet", labels="none").labels == []
    with pytest.raises(ValueError, match=r"has no column colour \(there are: image, label, name\)"):
        open_source(tmp_path / "a.parquet", labels="colour")


def test_which_column_holds_the_pictures(tmp_path):
    raw = [png(i) for i in range(3)]
    source = open_source(
        table(tmp_path / "a.parquet", __key__=["a", "b", "c"], mask=[b"x"] * 3, jpg=raw, cls=[3, 1, 3])
    )
    assert [source.read(i) for i in range(3)] == raw and source.labels == ["1", "3"]
    assert source.notes == ["the column jpg is taken for the pictures, not mask"]
    source = open_source(table(tmp_path / "b.parquet", image=pa.array(raw, pa.binary_view())))
    assert source.read(2) == raw[2]
    tree(tmp_path, "a.png", "b.png")
    source = open_source(table(tmp_path / "c.parquet", image=["a.png", "b.png"], label=[0, 1]))
    assert Path(str(source.read(1))) == tmp_path / "b.png" and source.labels == ["0", "1"]


def test_paths_must_not_lead_out_of_a_data_set(tmp_path):
    tree(tmp_path, "secret.png", "set/a.png")
    (tmp_path / "set" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["a.png", "../secret.png", str(tmp_path / "secret.png"), "link.png", "./a.png"]
    path = table(tmp_path / "set" / "data.parquet", image=[{"bytes": None, "path": p} for p in paths])
    for source in (open_source(path), open_source(path.as_uri())):
        for i, name in enumerate(paths):
            if name.endswith("a.png"):
                assert source.read(i)
            elif not (name == "link.png" and "filesystem" in vars(source) and source.filesystem is not None):
                with pytest.raises(ValueError, match="leads out of the data set"):
                    source.read(i)


def test_parquet_files_win_over_preview_pictures(tmp_path):
    tree(tmp_path, "assets/preview.png")
    table(tmp_path / "data" / "train-00000-of-00001.parquet", image=cells(5), label=[0, 1, 0, 1, 0])
    source = open_source(tmp_path)
    assert len(source.items) == 5 and source.labels == ["0", "1"]
    assert source.notes == ["the Parquet files are taken, not the 1 picture file next to them"]
    tree(tmp_path / "other", "a.png")
    table(tmp_path / "other" / "texts.parquet", text=["a"])
    source = open_source(tmp_path / "other")
    assert len(source.items) == 1 and "no column of pictures" in source.notes[0]


def test_pointers_of_git_lfs_are_called_by_their_name(tmp_path):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    (tmp_path / "train-0.parquet").write_bytes(pointer)
    with pytest.raises(ValueError, match="run git lfs pull"):
        open_source(tmp_path)


def test_labels_of_loaded_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"image": cells(3), "label": [5, 0, 5], "name": ["x", "y", "x"]})
    data = data.cast_column("image", datasets.Image())
    source = open_source(data)
    assert source.labels == ["0", "5"] and [item.label for item in source.items] == [1, 0, 1]
    assert open_source(data, labels="name").labels == ["x", "y"]
    assert open_source(data, labels="none").labels == []


# Archives -------------------------------------------------------------------------------------------------------------


def packed(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


CLASSES = {f"{name}/{i}.png": png(i + 10 * (name == "dog")) for i in range(3) for name in ("dog", "cat")}


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_archives_are_read_with_their_labels(suffix, tmp_path):
    path = packed(tmp_path / f"photos{suffix}", {"photos/" + name: data for name, data in CLASSES.items()})
    source = open_source(path)
    assert labelled(source) == {"photos/" + name: name.split("/")[0] for name in CLASSES}
    for copy in (source, pickle.loads(pickle.dumps(source))):
        for i in reversed(range(len(source.items))):
            assert copy.read(i) == CLASSES[source.items[i].key.removeprefix("photos/")]
    info = prepare(path, tmp_path / "out", size=16, workers=2, progress=False)
    assert sum(info.splits.values()) == 6 and info.skipped == 0 and info.labels == ["cat", "dog"]
    assert len(TripleStore.from_images(path, 16, 20)) == 6
    if suffix == ".zip":
        assert labelled(open_source(f"zip://::{path}")) == labelled(source)


def test_archives_with_metadata_and_odd_members(tmp_path):
    odd = {
        "dataset.json": json.dumps({"labels": [["00000/a.png", 1], ["00000/b.png", 0]]}).encode(),
        "00000/a.png": png(1), "./00000/b.png": png(2), "__MACOSX/00000/._a.png": b"x", "notes.txt": b"x",
        "00000/../../../etc/c.png": png(3),
    }  # fmt: skip
    for suffix in (".zip", ".tar"):
        source = open_source(packed(tmp_path / f"a{suffix}", odd))
        labels = labelled(source)
        assert labels["00000/a.png"] == "1" and labels["00000/b.png"] == "0" and len(labels) == 2
    with tarfile.open(tmp_path / "links.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    source = open_source(tmp_path / "links.tar")
    with pytest.raises(ValueError, match="not a regular file"):
        source.read(0)


def test_pieces_of_a_webdataset(tmp_path):
    for piece in range(2):
        samples = {f"{piece}{i}.{kind}": data for i in range(3) for kind, data in (("png", png(i)), ("cls", b"%d" % i))}
        packed(tmp_path / f"train-{piece:06d}.tar", samples)
    packed(tmp_path / "val-000000.tar", {"20.png": png(7), "20.cls": b"1"})
    source = open_source(tmp_path)
    assert source.labels == ["0", "1", "2"] and len(source.items) == 7
    assert labelled(source)["train-000001/12.png"] == "2" and splits(source)["val-000000/20.png"] == "validation"
    assert source.read(6) == png(7)


def test_archives_of_classes(tmp_path):
    for name in ("cat", "dog"):
        packed(tmp_path / f"{name}.zip", {"a.png": png(), "b.png": png(1)})
    source = open_source(tmp_path)
    assert labelled(source) == {f"{n}/{f}.png": n for n in ("cat", "dog") for f in "ab"}


def test_archives_that_are_no_use(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 no zip file")
    with pytest.raises(ValueError, match=r"a\.zip is not a readable archive"):
        open_source(tmp_path / "a.zip")
    with pytest.raises(ValueError, match=r"b\.zip holds no pictures"):
        open_source(packed(tmp_path / "b.zip", {"a.txt": b"x"}))
    path = packed(tmp_path / "c.tar", CLASSES)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut off"):
        source.read(5)


def test_links_out_of_a_folder_are_reported(tmp_path):
    tree(tmp_path / "elsewhere", "a.png", "sub/b.png")
    photos = tree(tmp_path / "photos", "c.png")
    (photos / "a.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (photos / "inside.png").symlink_to(photos / "c.png")
    (photos / "sub").symlink_to(tmp_path / "elsewhere" / "sub")
    source = open_source(photos)
    assert len(source.items) == 4
    assert source.notes[0].startswith("2 links lead out of") and "(sub, a.png)" in source.notes[0]


def test_information_of_a_prepared_set_is_kept(tmp_path):
    """The labels given by `--labels` are stored in the data set."""
    photos = tree(tmp_path / "photos", "cat/a.png", "dog/b.png")
    prepare(photos, tmp_path / "out", size=16, workers=1, progress=False, labels="none")
    assert DatasetInfo.load(tmp_path / "out").labels == []
