"""An evaluation as rows of text: for the terminal, and for the report's tables."""

from __future__ import annotations

from typing import Any

Rows = list[list[str]]


def score_rows(result: dict[str, Any]) -> Rows:
    """Return a header, then a row per comparison with every metric."""
    names = list(next(iter(result["scores"].values()), {}))
    shown = [name for name in names if not name.endswith("-spread")]

    def cell(scores: dict[str, float], name: str) -> str:
        spread = scores.get(name + "-spread")
        return figure(scores[name]) + (f" ± {figure(spread)}" if spread is not None else "")

    rows = [[what, *(cell(scores, name) for name in shown)] for what, scores in result["scores"].items()]
    return [["", *shown], *rows]


def figure(value: float) -> str:
    """Format a number with four significant digits."""
    return f"{value:#.4g}" if abs(value) < 999 else f"{value:,.0f}"


def coder_rows(bits: dict[str, Any]) -> Rows:
    """Return a header, then a row per coder: bytes per image, bits per pixel, bits per triple."""
    rows = [["coder", "bytes per image", "bits per pixel", "bits per triple"]]
    for row in bits["table"]:
        if row["bytes_per_image"] is None:
            rows.append([row["coder"], "not installed:", row["missing"], ""])
            continue
        error = bits["standard_error_bytes"] if row is bits["table"][0] else None
        size = f"{row['bytes_per_image']:.1f}" + (f" ± {error:.1f}" if error is not None else "")
        rows.append([row["coder"], size, f"{row['bits_per_pixel']:.4f}", f"{row['bits_per_triple']:.4f}"])
    return rows


def band_rows(bits: dict[str, Any]) -> Rows:
    """Return a header, then a row per band: triples and bits per image, by field."""
    fields = list(bits["bits_per_triple_by_field"])
    rows = [["band", "triples", *fields, "bits per image"]]
    for band, by_field in bits["bits_per_image_by_band_and_field"].items():
        count = bits["triples_per_image_by_band"].get(band, 1.0)
        total = bits["bits_per_image_by_band"][band]
        rows.append([band, f"{count:.1f}", *(f"{by_field[name]:.1f}" for name in fields), f"{total:.1f}"])
    per_triple = [f"{bits['bits_per_triple_by_field'][name]:.4f}" for name in fields]
    return [*rows, ["bits per triple", "", *per_triple, f"{bits['bits_per_triple']:.4f}"]]


def two_sample_rows(result: dict[str, Any]) -> Rows:
    """Return a header, then a row per view: how often generated pictures are recognised, and real among real ones."""

    def cells(found: dict[str, Any] | None) -> list[str]:
        if found is None:
            return ["–", "–"]
        seeds = ", ".join(f"{one:.3f}" for one in found["seeds"])
        return [f"{found['accuracy']:.3f} ± {found['standard_error']:.3f}", seeds]

    rows = [[view, *cells(found["generated"]), *cells(found["real"])] for view, found in result["views"].items()]
    return [["coefficients", "generated from real", "seeds", "real from real", "seeds"], *rows]


def two_sample_lines(result: dict[str, Any]) -> list[str]:
    """Describe the figures of `two_sample_rows`, or give the reason why there are none."""
    if result["skipped"]:
        return [f"no classifier two-sample test: {result['skipped']}"]
    count = next(iter(result["views"].values()))["generated"]["pictures"]
    return [
        f"classifier two-sample test: balanced accuracy (± standard error) with which {count:,} generated and as many "
        f"real pictures (after the codec) are distinguished; {result['chance']:g} is chance, and lower is better"
    ]


def sampling_text(sampling: dict[str, Any]) -> str:
    """Return the seed and the settings of sampling, the fields of a `SampleConfig`, as a phrase."""
    names = {"temperature": "temperature", "top_p": "top-p", "guidance": "guidance"}
    parts = [f"seed {sampling['seed']}", *(f"{words} {sampling[name]:g}" for name, words in names.items())]
    # Evaluations of older versions have no min-p and no settings of texture.
    if sampling.get("min_p"):
        parts.append(f"min-p {sampling['min_p']:g}")
    texture = {words: sampling.get(f"texture_{name}") for name, words in names.items()}
    return ", ".join([*parts, *(f"{words} of texture {x:g}" for words, x in texture.items() if x is not None)])


def setting_lines(settings: dict[str, Any]) -> list[str]:
    """Return everything that the scores depend on, a sentence or two per line."""
    reference, generated = settings["reference"], settings["generated"]
    pictures = (
        f"{generated['pictures']:,} from {generated['folder']}"
        if generated["folder"]
        else f"{generated['pictures']:,}, {sampling_text(generated)}; labels: {generated['labels']}"
    )
    size = reference["size"]
    size = f"{size}×{size}" if isinstance(size, int) else size.replace("x", "×")
    real = f" and the first {settings['neighbours']:,} real pictures" if "neighbours" in settings else ""
    lines = [
        f"reference: {reference['pictures']:,} pictures, {reference['split']} split of {reference['data']}; "
        f"{reference['crop']} to {size}; codec: {settings['codec']}",
        f"generated: {pictures}",
        f"extractor: {settings['extractor']} (weights {settings['extractor_fingerprint']}); "
        f"its resize: {settings['resize']}",
        f"precision and recall: k = {settings['neighbour']}{real}; kernel distance: {settings['kid_subsets']} subsets "
        f"of {settings['kid_subset_size']:,}, seed {settings['seed']}",
        "hashes of the reference: " + ", ".join(f"{what} {h}" for what, h in reference["hash"].items()),
    ]
    if reference["originals_missing"]:
        lines.append(f"no scores against the originals: {reference['originals_missing']}")
    if settings["extractor"] != "inception":
        lines.append(
            f"{settings['extractor']} is not the Inception network: its figures compare with each other, "
            "not with published ones"
        )
    return lines


def as_text(result: dict[str, Any]) -> str:
    """Format a whole evaluation for the terminal."""
    blocks = [f"{result['model']} (weights {result['weights']}) on {result['data']}"]
    if result["scores"]:
        blocks += [aligned(score_rows(result)), "\n".join(setting_lines(result["settings"]))]
    if result.get("c2st"):
        found = result["c2st"]
        blocks += [*two_sample_lines(found), *([aligned(two_sample_rows(found))] if found["views"] else [])]
    if result["bits"]:
        bits = result["bits"]
        split = f"{bits['split']} split of " if bits["split"] != "all" else ""
        blocks += [
            f"exact bits of {bits['images']:,} pictures ({split}{bits['data']}), headers subtracted",
            aligned(coder_rows(bits)),
            aligned(band_rows(bits)),
        ]
    return "\n\n".join(blocks)


def aligned(rows: Rows) -> str:
    """Align rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows if row[1:2] != ["not installed:"]) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        if row[1:2] == ["not installed:"]:
            lines.append(f"{row[0].ljust(widths[0])}  not installed: {row[2]}")
            continue
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
