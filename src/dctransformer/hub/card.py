"""The model card: the description next to a model's weights on the hub."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dctransformer.model.config import ModelConfig
from dctransformer.sequence.conditions import abilities

PAPER = "https://arxiv.org/abs/2103.03841"
TAGS = ("image-generation", "dct", "jpeg", "likelihood")

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A [DCTransformer]({{ paper_url }}) of {{ millions }}M parameters for pictures of {{ width }}×{{ height }} pixels at JPEG
quality {{ quality }}{{ classes }}.

It was trained to: {{ tasks }}.

## Use

With `dctransformer` installed:

    dctransformer sample {{ prefix }}{{ name }} --num 16 --out samples

```python
from dctransformer import DCTransformer
from dctransformer.sampling.config import SampleConfig
from dctransformer.sampling.engine import sample

model = DCTransformer.from_pretrained("{{ name }}")
size = ({{ height }}, {{ width }})  # height, width
pixels = sample(model, 4, SampleConfig(seed=0), size=size).pixels()  # uint8 [4, {{ height }}, {{ width }}, 3]
```

## Figures
{% if figures %}
| what | figure |
|---|---|
{% for what, figure in figures.items() -%}
| {{ what }} | {{ "%.4g" | format(figure) }} |
{% endfor %}{% else %}
None were measured. `dctransformer likelihood {{ prefix }}{{ name }} DATA` counts the exact bytes per image.
{% endif %}
## Config

| field | value |
|---|---|
{% for field, value in config.items() -%}
| {{ field }} | {{ value }} |
{% endfor %}"""


def model_card(config: ModelConfig, parameters: int, name: str, figures: dict[str, float], info: Any) -> ModelCard:
    """Fill in the model card.

    Args:
        config: of the model.
        parameters: their number.
        name: under which the model can be loaded.
        figures: scores by name; they go into the card's metadata, too.
        info: the hub mixin's information on the class (library, task, tags, paper).
    """
    results = [
        EvalResult("unconditional-image-generation", "image-folder", "validation pictures", what, figure)
        for what, figure in figures.items()
    ]
    data = ModelCardData(
        **{**info.model_card_data.to_dict(), "model_name": name.split("/")[-1], "eval_results": results or None}
    )
    classes = f", conditioned on {config.num_labels} classes" if config.num_labels else ""
    height, width = config.trained_shape
    shown = {k: v for k, v in dataclasses.asdict(config).items() if k != "label_names"}
    return ModelCard.from_template(
        data, template_str=_TEMPLATE, name=name, paper_url=info.paper_url, millions=f"{parameters / 1e6:.3g}",
        width=width, height=height, quality=config.quality, classes=classes, figures=figures, config=shown,
        tasks=abilities(config.conditions), prefix="hf:" if re.fullmatch(r"[^/]+/[^/]+", name) else "",
    )  # fmt: skip
