"""The tab Inspect: a file's coefficients, and the bits that a model needs for them."""

from __future__ import annotations

from torch import Tensor

from dctransformer.app.render import jpeg_uri, parts, png_uri
from dctransformer.app.uploads import Inspected
from dctransformer.codec import Codec, huffman_bytes, order
from dctransformer.codec.adapt import read_own_coefficients, requantise
from dctransformer.codec.grid import Grid
from dctransformer.evaluate.bits import surprise
from dctransformer.evaluate.plots import heat
from dctransformer.model.dctransformer import DCTransformer
from dctransformer.sampling.likelihood import FIELDS, code_lengths, require_finite, triple_bits
from dctransformer.sequence.chunks import Sequence

BAND_TITLES = order.BAND_TITLES
"""The bands as a person reads them: zigzag frequencies."""

COMPONENTS = ("Y", "Cb", "Cr")


def file_facts(picture: Inspected) -> str:
    """Show what a file holds, as HTML."""
    facts = picture.facts
    text = f"{facts['format']} file, {facts['width']} × {facts['height']} pixels, {facts['bytes']:,} bytes"
    if "triples" not in facts:
        return parts.file_facts(f"{text}; only JPEG files hold coefficients of their own.", None, None)
    text += f", chroma sampling {facts['sampling']}, {facts['triples']:,} coefficients that are not zero (triples)."
    bands = facts["triples_by_band"]
    rows = [(title, f"{bands[name]:,}") for name, title in zip(order.BAND_NAMES, BAND_TITLES, strict=True)]
    of = ", ".join(f"{count:,} of {name}" for name, count in facts["triples_by_component"].items())
    return parts.file_facts(text, rows, of)


def needed_bits(model: DCTransformer, codec: Codec, name: str, picture: Inspected, label: int) -> str:
    """Show how many bits a model needs for a picture, and where, as HTML.

    Args:
        model: in eval mode.
        codec: of the model's quality.
        name: the name or path by which the model was loaded.
        picture: the inspected picture.
        label: number of its class, or of none.
    """
    coefficients = read_own_coefficients(picture.jpeg)
    assert coefficients is not None
    dct = requantise(coefficients, codec)
    grid = Grid.of_size(dct.height, dct.width)
    triples = dct.to_triples()[0]
    sequence = Sequence.from_triples(triples, grid, label)
    lengths = code_lengths(model, [sequence])
    require_finite(lengths.bits, name)
    counts = lengths.summary()
    maps = surprise(model, [sequence])
    figures = [
        parts.figure(
            jpeg_uri(dct), "what the model is shown", alt="the picture that the model is shown",
            note=f"{dct.width} × {dct.height} pixels, JPEG quality {model.config.quality}, {len(triples)} triples",
        ),
        parts.figure(
            png_uri(heat(maps, float(maps.max()))[0]), "bits, block by block", alt="heat-map of bits",
            note=f"black: none; pale: {float(maps.max()):.0f} bits per block",
        ),
    ]  # fmt: skip
    rows = []
    for band, title in zip((*order.BAND_NAMES, "stop"), (*BAND_TITLES, "the end"), strict=True):
        count = counts["triples_per_image_by_band"].get(band, 1)
        total = counts["bits_per_image_by_band"][band]
        fields = counts["bits_per_image_by_band_and_field"][band]
        mean = f"{total / count:.2f}" if count else "–"
        rows.append((title, f"{count:.0f}", f"{total:.0f}", mean, *(f"{fields[name]:.0f}" for name in FIELDS)))
    head = ("band", "triples", "bits", "bits per triple", *(f"of the {name}s" for name in FIELDS))
    total = (
        f"The model needs {counts['bytes_per_image']:.0f} bytes for this picture, exactly; libjpeg's best Huffman "
        f"code needs {huffman_bytes(dct)} for the same coefficients (headers not counted)."
    )
    note = None if picture.own else (
        f"The model knows pictures of {grid.size.replace('x', ' × ')} pixels at JPEG quality {model.config.quality}: "
        "it is shown this one's centre, resized and encoded anew."
    )  # fmt: skip
    surprises = _surprises(triples, triple_bits(model, sequence), grid)
    return parts.needed_bits(note, figures, total, head, rows, *surprises)


def _surprises(triples: Tensor, bits: Tensor, grid: Grid, most: int = 8) -> tuple[tuple, list[tuple]]:
    """Return the triples with the most bits: the head and the rows of a table."""
    total = bits[: len(triples)].sum(1)
    rows = []
    for i in total.argsort(descending=True, stable=True)[:most].tolist():
        channel, position, value = triples[i].tolist()
        rows.append((
            f"{COMPONENTS[channel // 64]} {channel % 64}", BAND_TITLES[order.BAND_OF_CHANNEL[channel]],
            f"{position // grid.width}, {position % grid.width}", f"{value:+d}", f"{float(total[i]):.1f}",
            *(f"{b:.1f}" for b in bits[i].tolist()),
        ))  # fmt: skip
    head = ("channel", "band", "block (row, column)", "value", "bits", *(f"of the {name}" for name in FIELDS))
    return head, rows
