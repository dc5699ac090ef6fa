"""Tests of windows and buckets: training batches from pictures of several sizes."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch

from dctransformer import DCTransformer
from dctransformer.codec import Codec, DCTImage
from dctransformer.codec import grid as grid_module
from dctransformer.codec.grid import Grid, rank_slots
from dctransformer.codec.triples import crop_triples, flip_triples
from dctransformer.data import TripleStore, prepare
from dctransformer.model.config import preset
from dctransformer.model.context import neighbour_table
from dctransformer.model.texture_state import checkerboard
from dctransformer.sequence import ChunkBatches, ChunkSampler, Conditions
from dctransformer.sequence.windows import centre_window, chunks_by_window, most_chunks, parse_window
from pictures import photo
from test_data_shapes import mixed_folder

GRID = Grid(3, 4)
CODEC = Codec(40)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TripleStore:
    """20 pictures of four sizes, with long sides of 96 pixels."""
    folder = tmp_path_factory.mktemp("windows")
    mixed_folder(folder / "photos")
    prepare(folder / "photos", folder / "data", quality=30, long_side=96, workers=1, progress=False, val_fraction=0)
    return TripleStore.open(folder / "data", progress=False)


def triples_of(picture: DCTImage) -> torch.Tensor:
    """The triples of one picture."""
    return picture.to_triples()[0]


def rectangle(picture: DCTImage, grid: Grid, top: int, left: int, window: Grid) -> DCTImage:
    """A crop of the coefficient planes, computed directly."""
    mcus = picture.to_mcus()[0].view(grid.rows, grid.cols, 6, 64)
    part = mcus[top : top + window.rows, left : left + window.cols].reshape(1, window.mcus, 6, 64)
    return DCTImage.from_mcus(part, window.rows, window.cols, CODEC.luma_table, CODEC.chroma_table)


@pytest.mark.parametrize("window", [Grid(1, 1), Grid(2, 3), Grid(3, 1), Grid(3, 4)])
def test_a_window_has_the_pictures_coefficients(window):
    """Windows are exact and ordered, commute with flips, and keep dtypes."""
    picture = CODEC.encode(photo(48, 64, seed=2))
    triples = triples_of(picture)
    assert Grid.of_size(48, 64) == GRID
    for top in range(GRID.rows - window.rows + 1):
        for left in range(GRID.cols - window.cols + 1):
            cropped = crop_triples(triples, GRID, top, left, window)
            assert torch.equal(cropped, triples_of(rectangle(picture, GRID, top, left, window)))
            assert cropped.dtype == triples.dtype
            mirrored = crop_triples(
                flip_triples(triples, GRID), GRID, top, GRID.cols - window.cols - left, window
            )  # fmt: skip
            assert torch.equal(flip_triples(cropped, window), mirrored)
            counts = chunks_by_window(triples[:, 1].numpy(), GRID, window, 7)
            assert counts[top, left] == -(-(len(cropped) + 1) // 7)
    assert torch.equal(triples, triples_of(picture))  # as it was
    with pytest.raises(ValueError, match="is not inside of 64x48"):
        crop_triples(triples, GRID, GRID.rows - window.rows + 1, 0, window)


def test_the_bound_on_a_pictures_chunks_holds():
    """The bound holds for any arrangement of the triples, especially in the most visited MCUs."""
    noise = np.random.default_rng(0)
    for trial in range(300):
        rows, cols = noise.integers(1, 8, 2)
        window = Grid(int(noise.integers(1, rows + 1)), int(noise.integers(1, cols + 1)))
        picture, stride = Grid(int(rows), int(cols)), int(noise.integers(1, 20))
        count = int(noise.integers(0, 60))
        middle = picture.positions // 2 + picture.cols
        positions = np.full(count, min(middle, picture.positions - 1)) if trial % 2 else noise.integers(
            0, picture.positions, count)  # fmt: skip
        chunks = chunks_by_window(positions, picture, window, stride)
        sides = (np.array([[grid.rows, grid.cols]]) for grid in (picture, window))
        assert chunks.mean() <= most_chunks(np.array([count]), *sides, stride)[0] <= -(-(count + 1) // stride)


def test_every_chunk_of_every_window_has_its_share(store):
    """Windows of a picture have equal weight, and so have the chunks of all its windows."""
    window, stride = Grid(2, 2), 96
    sampler = ChunkSampler(store, stride, 64, seed=1, window=window)
    assert sampler.windowed and [bucket.grid for bucket in sampler.buckets] == [window]
    expected: dict[tuple, float] = {}
    for i in range(len(store)):
        chunks = chunks_by_window(store.triples(i)[:, 1].numpy(), store.grid(i), window, stride)
        for (top, left), count in np.ndenumerate(chunks):
            expected |= {(i, top, left, k): 1 / chunks.size for k in range(int(count))}
    total = sum(expected.values())
    assert sampler.mean_chunks == pytest.approx(total / len(store))
    seen = Counter(
        (d.picture, d.top, d.left, d.chunk) for step in range(200) for d in sampler.draws(step)
    )  # fmt: skip
    drawn = sum(seen.values())
    assert set(seen) <= set(expected)
    error = sum((seen[key] - drawn * share / total) ** 2 / (drawn * share / total) for key, share in expected.items())
    assert error / len(expected) == pytest.approx(1, abs=4 * (2 / len(expected)) ** 0.5)
    by_picture = Counter(key[0] for key in seen.elements())
    for i in range(len(store)):
        share = sum(s for key, s in expected.items() if key[0] == i) / total
        assert by_picture[i] / drawn == pytest.approx(share, rel=0.15)


def test_windows_of_pictures_that_are_too_small_are_smaller(store):
    """Smaller windows form their own buckets, each with its share."""
    sampler = ChunkSampler(store, 32, 8, seed=2, window=parse_window("64x96"))
    assert {bucket.grid for bucket in sampler.buckets} == {Grid(4, 4), Grid(6, 4), Grid(6, 2)}
    weights = Counter()
    for i in range(len(store)):
        grid = Grid(min(6, store.grid(i).rows), min(4, store.grid(i).cols))
        weights[grid] += float(chunks_by_window(store.triples(i)[:, 1].numpy(), store.grid(i), grid, 32).mean())
    seen = Counter(sampler.grid(step) for step in range(1500))
    for grid, weight in weights.items():
        assert seen[grid] / 1500 == pytest.approx(weight / sum(weights.values()), abs=0.04)
    for step in range(20):
        assert {draw.grid for draw in sampler.draws(step)} == {sampler.grid(step)}


@pytest.mark.parametrize("shuffle", ["all", "stretches"])
def test_each_bucket_visits_every_chunk_once_per_epoch(store, shuffle):
    """Buckets have separate steps in proportion at any time, even if smaller than a batch."""
    batch = 64
    sampler = ChunkSampler(store, 40, batch, seed=1, shuffle=shuffle)
    assert len(sampler.buckets) == 4 and min(bucket.total for bucket in sampler.buckets) < batch
    steps: dict[Grid, list[tuple]] = {bucket.grid: [] for bucket in sampler.buckets}
    count = 0
    while min(len(seen) for seen in steps.values()) < 2 * batch:
        assert sampler.grid(count) in steps
        pairs = [tuple(pair) for pair in sampler.chosen(count)]
        assert {store.grid(picture) for picture, _ in pairs} == {sampler.grid(count)}
        steps[sampler.grid(count)] += pairs
        count += 1
        for bucket in sampler.buckets:
            assert abs(len(steps[bucket.grid]) / batch - count * bucket.total / sampler.total) < 3
    for bucket in sampler.buckets:
        everything = sorted(map(tuple, bucket.pairs(np.arange(bucket.total))))
        if shuffle == "all":
            assert sorted(steps[bucket.grid][: bucket.total]) == everything
        assert set(steps[bucket.grid]) <= set(everything)


def test_one_size_is_drawn_as_ever():
    """The order of a data set of one size is the same as before buckets were introduced."""
    store = _synthetic([Grid(2, 2)] * 7, [10, 3, 0, 5, 8, 30, 1])
    sampler = ChunkSampler(store, 4, 6, seed=3)
    order = np.random.default_rng([3, 1, 0]).permutation(sampler.total)
    assert [tuple(pair) for pair in sampler.chosen(0)] == [tuple(sampler.items[place]) for place in order[:6]]


def _synthetic(grids: list[Grid], lengths: list[int]) -> TripleStore:
    """A store of synthetic triples in memory."""
    from dctransformer.data import DatasetInfo

    offsets = np.cumsum([0, *lengths])
    places = [np.random.default_rng(n).integers(0, grid.positions, n) for grid, n in zip(grids, lengths, strict=True)]
    positions = np.concatenate(places)
    n = len(grids)
    return TripleStore(
        DatasetInfo(size=None, quality=30, splits={}, shape={"long_side": 96}),
        channels=np.zeros(offsets[-1], np.uint8), positions=positions.astype(np.int32),
        values=np.ones(offsets[-1], np.int16), offsets=offsets, labels=np.full(n, -1),
        huffman_bytes=np.zeros(n, np.int32), heights=np.array([16 * g.rows for g in grids], np.int32),
        widths=np.array([16 * g.cols for g in grids], np.int32),
    )  # fmt: skip


@pytest.mark.parametrize("window", [None, "32", "64x96"])
@pytest.mark.parametrize("shuffle", ["all", "stretches"])
def test_rows_do_not_depend_on_the_process(store, window, shuffle):
    """Two processes together have the rows of one, and steps do not depend on earlier ones."""
    options = {
        "seed": 5, "conditions": Conditions(), "window": window and parse_window(window), "shuffle": shuffle,
    }  # fmt: skip
    whole = ChunkBatches(store, 48, 8, 6, **options)
    halves = [ChunkBatches(store, 48, 8, 6, rows=range(first, first + 3), **options) for first in (0, 3)]
    for step in (3, 0, 11):
        batch, parts = whole[step], [half[step] for half in halves]
        assert all(part.grid == batch.grid for part in parts)
        for name in ("coefficients", "settled", "closed", "labels", "lengths"):
            assert torch.equal(getattr(batch, name), torch.cat([getattr(part, name) for part in parts])), name


def test_batches_of_windows_hold_what_the_windows_hold(store):
    """A batch equals the one of whole pictures cropped and cut separately."""
    from dctransformer.sequence import Sequence, cut_chunks

    batches = ChunkBatches(store, 48, 8, 6, seed=3, flip=False, window=Grid(3, 2), label_dropout=0)
    for step in range(4):
        draws = batches.sampler.draws(step)
        sequences = [
            Sequence.from_triples(crop_triples(store.triples(d.picture), store.grid(d.picture), d.top, d.left, d.grid),
                                  d.grid, 0)
            for d in draws
        ]  # fmt: skip
        cut = cut_chunks(sequences, [d.chunk for d in draws], 48, 8)
        for name in ("coefficients", "settled", "closed", "ranks", "positions", "values", "context", "labels"):
            assert torch.equal(getattr(cut, name), getattr(batches[step], name)), name
        assert batches[step].grid == cut.grid == Grid(3, 2)


def test_windows_at_the_centre(store):
    """Validation scores the window at the centre."""
    for i in range(5):
        triples, grid = centre_window(store.triples(i), store.grid(i), Grid(2, 2))
        picture = store.grid(i)
        top, left = (picture.rows - 2) // 2, (picture.cols - 2) // 2
        assert grid == Grid(2, 2)
        assert torch.equal(triples, crop_triples(store.triples(i), picture, top, left, grid))
        assert centre_window(store.triples(i), picture, None)[1] == picture


def test_windows_that_are_refused(store):
    """Invalid windows are refused in one sentence."""
    with pytest.raises(ValueError, match=r"window of 128x96 pixels is larger than every picture \(the largest is 96x9"):
        ChunkSampler(store, 32, window=parse_window("128x96"))
    with pytest.raises(ValueError, match="window 100 is not a positive multiple of 16"):
        parse_window("100")
    with pytest.raises(ValueError, match="early starts are for whole pictures"):
        ChunkSampler(store, 32, window=Grid(2, 2), starts="early")


def test_pictures_without_triples_still_have_windows():
    """A picture without triples has a chunk of the stop alone."""
    empty = _synthetic([Grid(4, 4), Grid(4, 4)], [0, 3])
    seen = Counter(d.picture for step in range(300) for d in ChunkSampler(empty, 8, 4, window=Grid(2, 2)).draws(step))
    assert seen[0] / sum(seen.values()) == pytest.approx(0.5, abs=0.05)


def test_tables_made_while_sampling_can_be_used_in_training():
    """Cached grid tables are ordinary tensors, even if created in inference mode."""
    grid = Grid.shared(2, 7)
    assert Grid.shared(2, 7) is grid
    with torch.inference_mode():
        tables = [grid.row, grid.col, grid.mcu, grid.luma_block, grid.is_chroma_place, grid.chroma_position]
        tables += [grid.block_position, rank_slots(grid, torch.device("cpu")), checkerboard(grid, torch.device("cpu"))]
    assert not any(table.is_inference() for table in tables)
    scores = torch.zeros(grid.mcus, requires_grad=True)
    (scores[grid.mcu] * 2).sum().backward()
    assert scores.grad is not None and scores.grad.tolist() == [8] * grid.mcus


def test_tables_of_many_grids_are_built_once(monkeypatch):
    """Data of a hundred grids keeps the tables of each; beyond the limit of memory the oldest are built again."""
    grids, device = [Grid(rows, cols) for rows in range(1, 11) for cols in range(1, 11)], torch.device("meta")
    functions = (rank_slots, checkerboard, neighbour_table, lambda grid, device: grid.table("luma_block", device))
    first, second = ([table(grid, device) for grid in grids for table in functions] for _ in range(2))
    assert all(a is b for a, b in zip(first, second, strict=True))
    monkeypatch.setattr(grid_module, "TABLE_BYTES", 2 * rank_slots(grids[-1], device).nbytes)
    devices = [torch.device("meta", k) for k in range(3)]
    tables = [rank_slots(grids[-1], device) for device in devices]
    assert rank_slots(grids[-1], devices[2]) is tables[2]
    assert rank_slots(grids[-1], devices[0]) is not tables[0]


def test_random_offsets_train_every_row_and_column(store):
    """Offsets vary by step, depend on its number alone, and cover the position tables."""
    batches = ChunkBatches(store, chunk=64, batch=2, window=Grid(2, 2), positions=6)
    offsets = {batches[step].offset for step in range(120)}
    assert set(range(5)) <= {top for top, _ in offsets} and set(range(5)) <= {left for _, left in offsets}
    assert batches[7].offset == ChunkBatches(store, chunk=64, batch=2, window=Grid(2, 2), positions=6)[7].offset
    assert ChunkBatches(store, chunk=64, batch=2, window=Grid(2, 2))[7].offset == (0, 0)
    torch.manual_seed(0)
    model = DCTransformer(preset("tiny", max_grid=12)).eval()
    batch = batches[0]
    with torch.inference_mode():
        unshifted = model(dataclasses.replace(batch, offset=(0, 0)))
        shifted = model(dataclasses.replace(batch, offset=(4, 3)))
        with pytest.raises(ValueError, match="smaller size"):
            model(dataclasses.replace(batch, offset=(6, 0)))
    assert not torch.equal(unshifted, shifted)
