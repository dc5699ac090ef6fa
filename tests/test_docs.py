"""Tests of the documentation: links resolve, commands exist, and the reference can be built."""

from __future__ import annotations

import ast
import functools
import importlib.util
import math
import re
import unicodedata
from pathlib import Path

import pytest

from dctransformer.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "configs").rglob("*.md")),
    *sorted((ROOT / "src/dctransformer/weights").glob("*/README.md")),
]  # fmt: skip


def prose(page: Path) -> str:
    """A page without fenced and indented code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "\n".join(line for line in text.splitlines() if not line.startswith("    "))


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    plain = (unicodedata.normalize("NFC", re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", h)).lower() for h in headings)
    return {re.sub(r"[^\w\- ]", "", h).strip().replace(" ", "-") for h in plain}


def links(page: Path) -> list[str]:
    """Targets in this repository of the links and pictures of a page."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [t for t in targets if not re.match(r"[a-z]+:", t)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Linked files and headings exist."""
    for target in links(page):
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        assert linked.is_relative_to(ROOT), f"{page.name} links out of the repository: {target}"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {target}, but {linked.name} has no such heading"


HISTORY = ("docs/log.md", "CHANGELOG.md")
"""Pages that may name files that are gone."""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_that_pages_name_exist(page: Path) -> None:
    """Modules named by their path, from the repository or the package, exist."""
    if str(page.relative_to(ROOT)) in HISTORY:
        return
    for name in re.findall(r"`((?:\w+/)+\w+\.py)\b", page.read_text(encoding="utf-8")):
        assert any((base / name).is_file() for base in (ROOT, ROOT / "src/dctransformer")), f"there is no {name}"


def test_every_page_and_picture_is_linked() -> None:
    """Every file in docs/ is linked."""
    linked = {(page.parent / target.partition("#")[0]).resolve() for page in PAGES for target in links(page)}
    for path in sorted((ROOT / "docs").rglob("*.*")):
        assert path.resolve() in linked, f"no page links to {path.relative_to(ROOT)}"


def commands() -> dict[str, set[tuple[str, str]]]:
    """Options by command, with the page that shows them, from all code blocks and settings files."""
    shown: dict[str, set[tuple[str, str]]] = {}
    sources = [*PAGES, *sorted((ROOT / "configs").rglob("*.toml"))]
    for page in sources:
        text = re.sub(r"\\\n[#\s]*", " ", page.read_text(encoding="utf-8"))
        for name, rest in re.findall(r"\bdctransformer(?:\.cli)? ([a-z]+)\b([^\n`#|]*)", text):
            options = re.findall(r"(?<!\S)--([a-z][\w.-]*)", rest)
            if options or f"`dctransformer {name}" in text or f"    dctransformer {name}" in text:
                shown.setdefault(name, set()).update((option, page.name) for option in [*options, "help"])
    return shown


def test_commands_and_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command shown in the documentation exists and accepts the options shown."""
    shown = commands()
    assert {"prepare", "train", "sample", "evaluate", "upscale"} <= set(shown)
    for command, options in sorted(shown.items()):
        with pytest.raises(SystemExit) as caught:
            main([command, "--help"])
        text = capsys.readouterr().out
        exists = caught.value.code == 0 and re.search(rf"usage: dctransformer {command}\b", text)
        assert exists, f"there is no command {command}, which {', '.join(sorted({page for _, page in options}))} shows"
        known = set(re.findall(r"--([a-z][\w.-]*)", text))
        for option, page in options:
            assert option in known or option.replace("_", "-") in known, f"{page}: {command} has no --{option}"


def test_the_citation_is_the_papers() -> None:
    """The citation file is complete and cites the paper."""
    yaml = pytest.importorskip("yaml")
    cite = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(cite)
    paper = cite["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Nash", "Menick", "Dieleman", "Battaglia"]
    assert paper["title"] == "Generating Images with Sparse Representations" and paper["year"] == 2021
    assert paper["identifiers"][0]["value"] == "arXiv:2103.03841"


def messages() -> list[list[str | None]]:
    """All strings of the code as their literal parts, with None for each value of an f-string."""
    strings: list[list[str | None]] = []
    for path in sorted((ROOT / "src/dctransformer").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append([node.value])
            elif isinstance(node, ast.JoinedStr):
                strings.append([str(p.value) if isinstance(p, ast.Constant) else None for p in node.values])
    return strings


def literal_length(text: str, message: list[str | None]) -> float:
    """Number of characters of ``text`` that are literal in a message that can start with it, or 0 if it can't."""
    if not any(literal and literal[:6] in text for literal in message):
        return 0

    @functools.cache
    def best(at: int, part: int) -> float:
        if at == len(text):
            return 0
        if part == len(message):
            return -math.inf
        literal = message[part]
        if literal is None:
            ends = (end for end in range(at + 1, len(text) + 1) if "; " not in text[at:end])
            return max((best(end, part + 1) for end in ends), default=-math.inf)
        same = min(len(literal), len(text) - at)
        return same + best(at + same, part + 1) if text[at : at + same] == literal[:same] else -math.inf

    return max(best(0, 0), 0)


def test_troubleshooting_quotes_real_sentences() -> None:
    """Every message in bold code is a complete message that the code can produce."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [q for bold in re.findall(r"\*\*(.+?)\*\*", page, flags=re.DOTALL) for q in re.findall(r"`([^`]+)`", bold)]
    sentences = [q.rstrip("… ") for q in quoted if " " in q]
    assert len(sentences) > 15
    known = messages()
    missing = [s for s in sentences if max(literal_length(s, message) for message in known) < 10]
    assert not missing, f"the code has no such message: {missing}"


def test_a_wrong_quotation_is_noticed() -> None:
    """A quotation with a word added, removed or changed is detected."""
    message = ["there is no ", None, "; give a folder"]
    assert literal_length("there is no x", message) == 12
    assert literal_length("there is no x; give a folder", message) == 27
    for wrong in ("there was no x", "there is no x; give the folder", "there is no x; give a folder or"):
        assert literal_length(wrong, message) == 0


def names_of(node: ast.stmt) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [name.id for target in targets for name in ast.walk(target or ast.Pass()) if isinstance(name, ast.Name)]


def defined(dotted: str) -> bool:
    """Whether a dotted name is a module of the package, or defined in one, according to the source text."""
    parts = dotted.split(".")
    for size in range(len(parts), 0, -1):
        folder = ROOT / "src" / Path(*parts[:size])
        module = next((m for m in (folder.with_suffix(".py"), folder / "__init__.py") if m.is_file()), None)
        if module is None:
            continue
        body = ast.parse(module.read_text(encoding="utf-8")).body
        for name in parts[size:]:
            statement = next((node for node in body if name in names_of(node)), None)
            if statement is None:
                return False
            body = getattr(statement, "body", [])
        return True
    return False


def test_the_architecture_names_real_things() -> None:
    """Every module, class, function and constant on the architecture page is where the page states."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = set(re.findall(r"`(dctransformer(?:\.\w+)+)`", page))
    assert len(names) > 30 and not defined("dctransformer.codec.order.NO_SUCH")
    assert not [name for name in sorted(names) if name != "dctransformer.DCTransformer" and not defined(name)]
    packages = {p.parent.name for p in (ROOT / "src/dctransformer").glob("*/__init__.py")}
    assert packages == set(re.findall(r"^  (\w+)/ ", page, flags=re.MULTILINE))


def test_imports_point_one_way() -> None:
    """No package imports one listed below it on the architecture page, even lazily, except the command line."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    order = re.findall(r"^  (\w+)/ ", page, flags=re.MULTILINE)
    backward = []
    for path in sorted((ROOT / "src/dctransformer").glob("*/*.py")):
        imports = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.ImportFrom)]
        for name in (n.module.split(".")[1] for n in imports if n.module and n.module.startswith("dctransformer.")):
            if name in order and order.index(name) > order.index(path.parent.name):
                backward.append(f"{path.parent.name}/{path.name} imports {name}")
    assert not backward, backward


def test_the_reference_is_built(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """The reference has a page per module with its docstrings."""
    pytest.importorskip("pdoc")
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    assert spec is not None and spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    reference.build(tmp_path)
    assert not [w for w in recwarn if "pdoc" in w.filename], [str(w.message) for w in recwarn]
    modules = [p for p in (ROOT / "src/dctransformer").rglob("*.py") if not p.name.startswith("_")]
    assert len(list(tmp_path.rglob("*.html"))) >= len(modules)
    page = (tmp_path / "dctransformer" / "codec" / "dct_image.html").read_text(encoding="utf-8")
    assert "Quantised DCT coefficients of a batch" in page and "to_triples" in page
