"""Tests of Muon: its steps, its precision, and the number of weight conversions per step."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dctransformer.codec.grid import Grid
from dctransformer.model.config import preset
from dctransformer.sequence.chunks import Sequence
from dctransformer.sequence.texture import sample_texture
from dctransformer.training.config import TrainConfig
from dctransformer.training.memory import by_length
from dctransformer.training.muon import Muon, orthogonalise
from dctransformer.training.optimizer import make_optimizer
from dctransformer.training.setup import new_model
from dctransformer.training.trainer import Trainer
from test_model_distribution import triples_of
from test_texture import SMALL, random_picture
from test_train_memory import uneven


def test_singular_values_end_near_one() -> None:
    """Singular values of full-rank matrices become about 1, and singular vectors are unchanged."""
    u, _, vt = torch.linalg.svd(torch.randn(2, 6, 15, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    x = u @ torch.diag(torch.tensor([5.0, 3, 1, 0.8, 0.5, 0.3])) @ vt
    y = orthogonalise(x, torch.float32)
    assert y.dtype == torch.float32
    singular = torch.linalg.svdvals(y)
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3
    core = u.mT @ y @ vt.mT
    assert float((core - torch.diag_embed(core.diagonal(dim1=1, dim2=2))).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_its_steps_are_those_of_the_reference(shape: tuple[int, int]) -> None:
    """Steps equal those of PyTorch's Muon, which orthogonalises in bf16."""
    torch.manual_seed(0)
    first = nn.Parameter(torch.randn(shape))
    second = nn.Parameter(first.detach().clone())
    settings = {"lr": 0.1, "weight_decay": 0.1, "momentum": 0.95}
    muon = Muon([{"params": [first]}], **settings, dtype=torch.bfloat16)
    reference = torch.optim.Muon([second], **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        first.grad = torch.randn(shape)
        second.grad = first.grad.clone()
        muon.step()
        reference.step()
    torch.testing.assert_close(first, second, atol=5e-3, rtol=0)


def test_parts_of_a_parameter_are_orthogonalised_apart() -> None:
    """Two matrices in one parameter have the steps of two parameters."""
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(12, 8))
    halves = [nn.Parameter(half.clone()) for half in whole.detach().chunk(2)]
    fused, apart = Muon([{"params": [whole], "parts": 2}], lr=0.1), Muon([{"params": halves}], lr=0.1)
    whole.grad = torch.randn(12, 8)
    for half, gradient in zip(halves, whole.grad.chunk(2), strict=True):
        half.grad = gradient.clone()
    fused.step()
    apart.step()
    torch.testing.assert_close(whole.detach(), torch.cat([half.detach() for half in halves]))


def test_keys_and_values_and_gates_are_parts() -> None:
    """Muon covers every matrix of the stacks exactly once, with products in the requested precision."""
    model = new_model(preset("tiny"), 0)
    muon, adamw = make_optimizer(model, TrainConfig().resolved(sharded=False)).parts
    assert isinstance(muon, Muon) and muon.dtype == torch.float32
    names = {id(p): name for name, p in model.named_parameters()}
    parts = {names[id(p)]: group["parts"] for group in muon.param_groups for p in group["params"]}
    assert {name for name, count in parts.items() if count == 2} == {
        name for name in parts if name.endswith(("key_value.weight", "up.weight"))
    }
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert not rest & set(parts) and rest | set(parts) == set(names.values())


class CastCount(TorchDispatchMode):
    """Counts the conversions of each parameter to bf16."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.casts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation, and count it if it converts a parameter."""
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and result.dtype == torch.bfloat16:
            name = self.names.get(args[0].data_ptr())
            self.casts.update([name] if name else [])
        return result


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_step_in_bf16_casts_every_weight_once(checkpoint: bool) -> None:
    """Every weight is converted once, however many products and passes read it, for the gradients of fp32 weights."""
    config = preset("tiny", size=32, quality=30, encoder=(1, 1), chunk=128, overlap=0, texture_from=2, **SMALL)
    lengths, grid = [64, 1, 2, 1, 1, 3, 2, 1], Grid.of_size(32, 32)
    batch = uneven(lengths, config)
    pictures = [Sequence.from_triples(triples_of(random_picture(k, 0.1, grid), grid), grid, 0) for k in range(2)]
    batch.texture = sample_texture(pictures, torch.tensor([0.2, 0.7]), 3, config.texture_rank)
    batch.texture.pictures, batch.texture.first = 2, config.texture_rank
    assert len(by_length(batch)) == 2
    gradients = []
    for precision in ("bf16", "fp32"):
        settings = TrainConfig(batch=8, device="cpu", precision=precision, checkpoint_activations=checkpoint)
        trainer = Trainer(new_model(config, 0), settings)
        with CastCount(trainer.model) as count:
            trainer.accumulate(batch, sum(lengths), None)
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
        assert len(count.casts) > 20 if precision == "bf16" else not count.casts
        assert set(count.casts.values()) <= {1}, count.casts
    for name, exact in gradients[1].items():
        assert float((gradients[0][name] - exact).norm()) <= 0.1 * float(exact.norm()) + 1e-4, name
