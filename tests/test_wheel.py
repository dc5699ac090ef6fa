"""Tests of the wheel: its contents, its dependencies, and sampling from it."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built as by `python -m build --wheel`, without a network."""
    pytest.importorskip("hatchling", reason="hatchling is not installed (pip install '.[dev]')")
    pytest.importorskip("build", reason="build is not installed (pip install '.[dev]')")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_it_holds_code_weights_and_extras(wheel: Path) -> None:
    """The wheel has all modules and weights and nothing else; heavy dependencies are extras."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (archive.read(n) for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        (entries,) = (archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt"))
    source = ROOT / "src"
    files = {
        p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert names == {name for name in files if not name.startswith(".")}
    assert "dctransformer/weights/flowers64/model.safetensors" in names
    assert "dctransformer = dctransformer.cli:main" in entries
    fields = email.message_from_bytes(metadata)
    assert {"train", "eval", "ray"} <= set(fields.get_all("Provides-Extra", []))
    core = {need.split(">")[0].lower() for need in fields.get_all("Requires-Dist", []) if "extra ==" not in need}
    assert core == {
        "torch", "numpy", "pillow", "jpeglib", "simplejpeg", "safetensors", "huggingface-hub", "pyarrow", "tyro",
        "tqdm", "jinja2", "pydantic", "annotated-types",
    }  # fmt: skip


def test_it_samples_on_its_own(wheel: Path, tmp_path: Path) -> None:
    """The unpacked wheel samples with only the required dependencies."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    extras = ("datasets", "tensorboard", "matplotlib", "ray", "onnxruntime", "transformers", "pandas")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({extras}))\n"
        "from dctransformer.cli import main; import dctransformer\n"
        "main(['sample', 'flowers64', '--num', '1', '--out', 'x', '--json']); print(dctransformer.__file__)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    listing, place = done.stdout.splitlines()[-2:]
    assert Path(place).is_relative_to(tmp_path / "site")
    assert (tmp_path / json.loads(listing)["files"][0]).read_bytes().startswith(b"\xff\xd8")
