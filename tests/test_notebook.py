"""Test of the tour notebook, in its short form."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"


def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell runs on a CPU, and the printed results are those that the text claims."""
    monkeypatch.setenv("DCTRANSFORMER_SHORT_TOUR", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    book = nbformat.read(TOUR, as_version=4)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells), "the notebook is stored without outputs"
    NotebookClient(book, timeout=300, kernel_name="python3").execute()
    printed = "".join(
        o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"
    )
    for text in (
        "lossless: True  exact mirror: True",
        "coefficients: True  pixels: True",
        "bytes per held-out picture",
    ):
        assert text in printed, printed
    pictures = sum("image/png" in o.get("data", {}) for cell in cells for o in cell.outputs)
    assert pictures == 7
