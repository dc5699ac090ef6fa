"""Tests of the benchmarks of training steps: what their batches hold, and which memory is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from dctransformer.model.config import preset
from dctransformer.model.dctransformer import DCTransformer


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch):
    """Make the modules of `benchmarks` importable."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    yield
    for name in ("measure", "memory"):
        sys.modules.pop(name, None)


def test_presets_that_are_timed_list_every_triple() -> None:
    """Chunks of all triples are possible for the presets whose steps are timed."""
    from measure import chunks, sequences, triple_preset  # pyright: ignore[reportMissingImports]

    config = triple_preset("small", size=32, width=32, heads=2, hidden=32, encoder=(1,))
    pool = sequences(2, config.size, config.quality, config.null_label)
    with torch.no_grad():
        nats = DCTransformer(config)(chunks(pool, config, 2))
    assert nats.max() < 1e3


def test_memory_of_structure_and_texture() -> None:
    """A chunk of the structure keeps less than one of all triples; texture counts where the model has it."""
    import memory  # pyright: ignore[reportMissingImports]

    small = {"texture_state": 8, "texture_width": 12, "texture_hidden": 16, "texture_blocks": 1}
    counted = []
    for texture_from in (2, 4):
        config = preset("tiny", size=32, chunk=256, overlap=0, texture_from=texture_from, **small)
        counted.append(memory.bytes_per_chunk(DCTransformer(config), config))
    (structure, texture), (everything, none) = counted
    assert 0 < structure < everything and none == 0 < texture
