"""`dctransformer.DCTransformer`: the network together with loading, saving and the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin

from dctransformer.files import write_text
from dctransformer.hub import pretrained
from dctransformer.hub.card import PAPER, TAGS, model_card
from dctransformer.model import dctransformer as network


class DCTransformer(
    network.DCTransformer,
    PyTorchModelHubMixin,
    library_name="dctransformer",
    pipeline_tag="unconditional-image-generation",
    paper_url=PAPER,
    tags=list(TAGS),
):
    """The DCTransformer of `dctransformer.model.dctransformer`, which can be loaded, saved and shared.

    Example:
        >>> model = DCTransformer.from_pretrained("flowers64")
        >>> model.config.size
        64
    """

    # The mixin's `from_pretrained` looks for a model on the hub before shipped weights, and its `save_pretrained`
    # deletes config.json before it writes a new one: both are replaced, around the same two hooks.

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> DCTransformer:
        """Load a model for use (fp32, eval mode).

        Args:
            name: a run folder, a saved model's folder, the name of shipped weights, or a hub id: ``owner/name``, which
                the command line and the tasks take as ``hf:owner/name`` only, or ``hf:owner/name@revision``.
            device: where to put it.
            revision: branch, tag or commit, for a hub id; so are the other arguments.
            token: of the hub; None uses that of ``hf auth login`` or ``HF_TOKEN``.
            cache_dir: where downloads are kept, if not in the library's default folder.
            local_files_only: use an earlier download only (as ``HF_HUB_OFFLINE=1`` does everywhere).
            force_download: download again even if the files are in the cache.

        Raises:
            ValueError: there is no such model, or its files are damaged or don't fit each other.
        """
        model = cls._from_pretrained(
            model_id=str(name), revision=revision, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only, token=token,
        )  # fmt: skip
        return model.to(device)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **hub: Any) -> DCTransformer:
        if pretrained.is_hub_id(model_id) and not Path(model_id).is_dir():
            model_id = pretrained.HUB + model_id
        return pretrained.load_model(model_id, make=cls, **hub)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        config: None = None,
        **push: Any,
    ) -> str | None:
        """Write ``config.json`` and ``model.safetensors``; nothing in them can run code.

        Args:
            folder: created if needed.
            dtype: of the stored weights: ``torch.bfloat16`` halves the file; ``torch.int8`` takes 30 % of fp32
                (`dctransformer.hub.storage`), for use, not for further training; None keeps the present one.
            model_card_kwargs: write a model card (``README.md``), too, if the folder has none: the arguments of
                `generate_model_card`, ``{}`` for a card without figures; None for no card.
            push_to_hub: upload the model, too.
            repo_id: where to (``owner/name``); the folder's name if not given.
            config: always the model's own; this parameter exists because the mixin passes it.
            push: arguments of `push_to_hub`.

        Returns:
            The address of the upload, if there was one.

        Raises:
            ValueError: the folder can't be written, weights can't be stored as that dtype, or one of `push_to_hub`'s
                reasons.
        """
        folder = Path(folder)
        self._save_pretrained(folder, dtype)
        if model_card_kwargs is not None and not (folder / "README.md").exists():
            write_text(folder / "README.md", str(self.generate_model_card(**model_card_kwargs)))
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push)

    def _save_pretrained(self, save_directory: Path, dtype: torch.dtype | None = None) -> None:
        pretrained.save_model(self, save_directory, dtype)

    def push_to_hub(self, repo_id: str, *, token: str | None = None, **options: Any) -> str:
        """Upload config, weights and a model card to the Hugging Face hub, in one commit.

        Args:
            repo_id: ``owner/name``; created if it does not exist.
            token: of the hub; None uses that of ``hf auth login`` or ``HF_TOKEN``.
            options: arguments of `huggingface_hub.ModelHubMixin.push_to_hub`: ``private``, ``commit_message``,
                ``branch``, ``create_pr``, ``model_card_kwargs`` and more.

        Returns:
            The address of the upload.

        Raises:
            ValueError: there is no token, or the hub refuses the upload.
        """
        pretrained.check_token(token)
        options["model_card_kwargs"] = {"name": repo_id, **(options.get("model_card_kwargs") or {})}
        with pretrained.hub_answers(repo_id):
            return super().push_to_hub(repo_id, token=token, **options)

    def generate_model_card(
        self, *, name: str | None = None, figures: dict[str, float] | None = None, text: str | None = None
    ) -> ModelCard:
        """Return the model card: description, use, config and figures.

        Args:
            name: under which the model can be loaded (hub id or folder).
            figures: scores by name.
            text: a whole card (front matter and text) to use instead.
        """
        if text is not None:
            return ModelCard(text)
        parameters = sum(p.numel() for p in self.parameters())
        return model_card(self.config, parameters, name or "path/to/this/folder", figures or {}, self._hub_mixin_info)
