"""Engines of per-example gradients against one example at a time over a zoo of models, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from tests.oracles.test_dp_sgd import ALONE
from unmem.component import UserError
from unmem.mitigations.dp import layers
from unmem.mitigations.dp.bookkeeping import Bookkeeping
from unmem.mitigations.dp.choice import ENGINES, choose
from unmem.mitigations.dp.engine import Unsupported
from unmem.mitigations.dp.self_check import Reference, refuse_coupling

SIDE = 8


def unet(**changes: Any) -> nn.Module:
    settings = {
        "sample_size": SIDE,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    }
    return UNet2DModel(**{**settings, **changes})


ATTENTION = {
    "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    "add_attention": True,
}


def conditional() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=SIDE, in_channels=1, out_channels=1, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def lora() -> nn.Module:
    from peft import LoraConfig

    model = conditional()
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    return model


def dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=1, num_layers=2, sample_size=SIDE, patch_size=2,
        num_embeds_ada_norm=10, norm_num_groups=1, dropout=0.0,
    )  # fmt: skip


def in_channels_last() -> nn.Module:
    return unet(**ATTENTION).to(memory_format=torch.channels_last)


ZOO: dict[str, Callable[[], nn.Module]] = {
    "plain": unet,
    "attention": lambda: unet(**ATTENTION),
    "classes": lambda: unet(num_class_embeds=11, **ATTENTION),
    "channels_last": in_channels_last,
    "scale_shift": lambda: unet(resnet_time_scale_shift="scale_shift", time_embedding_type="fourier"),
    "resnet_up_down": lambda: unet(downsample_type="resnet", upsample_type="resnet"),
    "condition": conditional,
    "lora": lora,
    "dit": dit,
}


def losses_of(model: nn.Module, n: int, multiplicity: int = 1) -> Callable[[np.ndarray], Tensor]:
    """Denoising losses of n made-up examples, each the mean over draws that stand one after the other."""
    g, rows, device = torch.Generator().manual_seed(1), n * multiplicity, next(model.parameters()).device
    x, eps = (torch.randn(rows, 1, SIDE, SIDE, generator=g).to(device) for _ in range(2))
    t, labels = (torch.randint(most, (rows,), generator=g).to(device) for most in (1000, 10))
    text = torch.randn(rows, 3, 8, generator=g).to(device)

    def losses(slots: np.ndarray) -> Tensor:
        r = (torch.as_tensor(slots)[:, None] * multiplicity + torch.arange(multiplicity)).flatten()
        if isinstance(model, UNet2DConditionModel):
            out = model(x[r], t[r], encoder_hidden_states=text[r]).sample
        elif isinstance(model, DiTTransformer2DModel):
            out = model(x[r], timestep=t[r], class_labels=labels[r]).sample[:, :1]
        else:
            out = model(x[r], t[r], class_labels=labels[r] if model.class_embedding is not None else None).sample
        return (out - eps[r]).square().flatten(1).mean(1).view(-1, multiplicity).mean(1)

    return losses


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return ZOO[kind]()


def clip(engine: Any, model: nn.Module, losses: Any, n: int, bound: float) -> tuple[dict[str, Tensor], Tensor]:
    """An engine's clipped sums by name, and its norms."""
    sums = {p: torch.zeros_like(p) for p in model.parameters() if p.requires_grad}
    done = engine.clip(losses, np.arange(n), bound, lambda p, part: sums[p].add_(part.view_as(p)))
    return {name: sums[p] for name, p in model.named_parameters() if p.requires_grad}, done.norms


@pytest.mark.parametrize("multiplicity", [1, 3])
@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("kind", list(ZOO))
def test_every_engine_is_right_on_the_zoo(kind: str, name: str, multiplicity: int) -> None:
    """Or says that it cannot: the ones that may are listed."""
    model = build(kind)
    reference = Reference(model, losses_of(model, 3, multiplicity), 3)
    try:
        cases = reference.check(ENGINES[name], multiplicity)
    except Unsupported:
        assert name == "opacus-ghost" and (multiplicity > 1 or kind == "dit")
        return
    assert [case.memory_format for case in cases] == ["contiguous", "channels_last"]
    for case in cases:
        assert case.passed, case
        assert case.norm_error < 1e-4
    assert reference.unused == []


@pytest.mark.gpu
@pytest.mark.parametrize("name", list(ENGINES))
@pytest.mark.parametrize("kind", list(ZOO))
def test_every_engine_is_right_on_a_gpu(kind: str, name: str) -> None:
    model = build(kind).to("cuda")
    try:
        cases = Reference(model, losses_of(model, 3), 3).check(ENGINES[name], 1)
    except Unsupported:
        assert name == "opacus-ghost" and kind == "dit"
        return
    assert all(case.passed for case in cases), cases


@pytest.mark.parametrize("ghost", [True, False])
@pytest.mark.parametrize("kind", ["classes", "condition"])
def test_ghost_norms_and_formed_gradients_agree(kind: str, ghost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "ghost_pays", lambda *sizes: ghost)
    model = build(kind)
    for multiplicity in (1, 2):
        cases = Reference(model, losses_of(model, 3, multiplicity), 3).check(Bookkeeping, multiplicity)
        assert all(case.passed for case in cases)


@pytest.mark.parametrize("ghost", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(4, 6, (3, 2), padding=(2, 0), dilation=(1, 2), stride=(2, 1), bias=False),
        nn.Conv2d(4, 6, 1),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv1d(4, 6, 3, padding=2, stride=2),
        nn.Conv1d(4, 6, 1),
    ],
    ids=str,
)
def test_convolutions_of_every_geometry(layer: nn.Module, ghost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and sums, with two draws an example, from any memory format, against autograd example by example."""
    monkeypatch.setattr(layers, "ghost_pays", lambda *sizes: ghost)
    model = nn.Sequential(copy.deepcopy(layer), nn.Flatten(1), nn.LazyLinear(1))
    shape = (8, 4, 7, 6) if isinstance(layer, nn.Conv2d) else (8, 4, 9)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model(x)
    if isinstance(layer, nn.Conv2d):
        x = x.contiguous(memory_format=torch.channels_last)

    def losses(slots: np.ndarray) -> Tensor:
        rows = (torch.as_tensor(slots)[:, None] * 2 + torch.arange(2)).flatten()
        return model(x[rows]).square().view(-1, 2).mean(1)

    for case in Reference(model, losses, 4).check(Bookkeeping, 2):
        assert case.passed and case.norm_error < 2e-5, case


class Twice(nn.Module):
    """A linear layer and a norm, each used twice; an embedding with a padding index; a frozen and an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6, padding_idx=0)
        self.mix, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.frozen, self.unused = nn.Linear(6, 6).requires_grad_(False), nn.Linear(6, 6)

    def forward(self, words: Tensor) -> Tensor:
        x = self.norm(self.mix(self.words(words)))
        return self.norm(self.mix(self.frozen(x).tanh()) + x).square().sum((1, 2)) + self.words(words[:, :1]).sum(
            (1, 2)
        )


@pytest.mark.parametrize("ghost", [True, False])
def test_layers_that_are_used_twice_and_not_at_all(ghost: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "ghost_pays", lambda *sizes: ghost)
    torch.manual_seed(0)
    model, words = Twice(), torch.tensor([[1, 2, 2, 0], [0, 0, 3, 1], [4, 4, 4, 4]])
    reference = Reference(model, lambda slots: model(words[slots]), 3)
    assert reference.unused == ["unused.weight", "unused.bias"]
    for case in reference.check(Bookkeeping, 1):
        assert case.passed, case
    engine = Bookkeeping(model, 1)
    sums, _ = clip(engine, model, lambda slots: model(words[slots]), 3, 1.0)
    assert set(sums) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert not sums["unused.weight"].any() and not sums["words.weight"][0].any()


def test_gradient_checkpointing_changes_nothing_for_book_keeping() -> None:
    plain, saving = build("classes"), build("classes")
    saving.enable_gradient_checkpointing()
    found = []
    for model in (plain, saving):
        model.train()
        found.append(clip(Bookkeeping(model, 1), model, losses_of(model, 4), 4, 0.1))
    torch.testing.assert_close(found[0][1], found[1][1])
    for name, total in found[0][0].items():
        torch.testing.assert_close(total, found[1][0][name])
    with pytest.raises(Unsupported, match="gradient checkpointing"):
        ENGINES["opacus-hooks"](build_checkpointed(), 1)


def build_checkpointed() -> nn.Module:
    model = build("plain")
    model.enable_gradient_checkpointing()
    return model


@pytest.mark.parametrize("name", ["bookkeeping", "opacus-hooks"])
def test_bf16_norms_are_taken_in_float32(name: str) -> None:
    model = build("classes")
    exact = losses_of(model, 4)

    def losses(slots: np.ndarray) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return exact(slots).float()

    reference = Reference(model, losses, 4, torch.bfloat16)
    for case in reference.check(ENGINES[name], 1):
        assert case.passed, case
        assert case.norm_error < 2e-2
    engine = ENGINES[name](model, 1)
    sums, norms = clip(engine, model, losses, 4, 1e-3)
    assert norms.dtype == torch.float32 and all(total.dtype == torch.float32 for total in sums.values())
    whole = torch.stack([total.double().norm() for total in sums.values()]).norm()
    assert float(whole) <= 4e-3


@pytest.mark.parametrize("multiplicity", [1, 4])
def test_no_norm_is_below_the_true_one(multiplicity: int) -> None:
    """In float64 beside: a ghost norm may be above by its margin, and is not below by more than rounding."""
    model = build("attention")
    exact = copy.deepcopy(model).double()
    losses = losses_of(model, 5, multiplicity)
    _, norms = clip(Bookkeeping(model, multiplicity), model, losses, 5, 1.0)
    for i in range(5):
        exact.zero_grad()
        x = losses_of(exact, 5, multiplicity)
        with _double():
            x(np.array([i])).sum().backward()
        true = torch.stack([p.grad.norm() for p in exact.parameters() if p.grad is not None]).norm()
        assert -1e-5 < float(norms[i] / true) - 1 < 1e-3


def _double() -> Any:
    """Tensors made here go into a float64 model."""
    from unittest.mock import patch

    forward = UNet2DModel.forward
    return patch.object(UNet2DModel, "forward", lambda self, x, *a, **k: forward(self, x.double(), *a, **k))


class Alien(nn.Module):
    """A layer that no tap is made for."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def chosen(model: nn.Module, engine: str = "auto", x: Tensor | None = None, loss: Any = None) -> dict[str, Any]:
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)) if x is None else x
    losses = loss or (lambda slots: model(inputs[slots]).square().sum(1))
    attached, record = choose(engine, model, losses, 6, multiplicity=1, precision=torch.float32, accelerator=ALONE)
    attached.detach()
    return record


def test_a_layer_without_a_tap_goes_to_opacus_and_the_log_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    model = nn.Sequential(nn.Linear(4, 4), Alien())
    monkeypatch.setattr("unmem.progress.say", said.append)
    with pytest.raises(Unsupported, match=r"1\.scale stands in a Alien, which has no tap"):
        Bookkeeping(model, 1)
    record = chosen(model)
    assert record["passed"] and record["engine"] != "bookkeeping"
    assert any("bookkeeping: 1.scale stands in a Alien" in line for line in said)
    with pytest.raises(UserError, match=r"dp_sgd\.engine: no private step is taken: bookkeeping: 1\.scale"):
        chosen(model, "bookkeeping")


def test_tied_parameters_are_detected() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(Unsupported, match=r"2\.weight is 0\.weight again"):
        Bookkeeping(model, 1)


def test_the_self_check_names_the_layer_that_an_engine_gets_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("attention")
    right = layers.ConvTap._backward

    def wrong(self: Any, x: Tensor, g: Tensor, which: int, examples: int = 1) -> Tensor:
        found = right(self, x, g, which, examples)
        return found * 1.02 if which == 1 and self.layer is model.conv_out else found

    monkeypatch.setattr(layers.ConvTap, "_backward", wrong)
    monkeypatch.setattr(layers, "ghost_pays", lambda *sizes: False)
    with pytest.raises(UserError, match=r"bookkeeping gives wrong gradients .* conv_out\.weight is off by 0\.0"):
        choose("bookkeeping", model, losses_of(model, 4), 4, multiplicity=1, precision=torch.float32, accelerator=ALONE)


def test_a_loss_that_mixes_images_is_caught() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))

    def coupled(slots: np.ndarray) -> Tensor:
        each = model(x[slots]).square().sum(1)
        return each / each.detach().mean()

    with pytest.raises(UserError, match="or the loss mixes the images of a batch"):
        chosen(model, loss=coupled)


STATISTICS = nn.InstanceNorm1d(4, track_running_stats=True)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4), STATISTICS], ids=str)
def test_layers_that_mix_images_are_refused_with_the_reason(layer: nn.Module) -> None:
    with pytest.raises(UserError, match=r"1 (is a \w*BatchNorm\w*: it normalises by the other|keeps statistics)"):
        refuse_coupling(nn.Sequential(nn.Linear(4, 4), layer))


def test_trying_an_engine_leaves_the_model_as_it_was() -> None:
    model = build("lora")
    before = {name: (p, p.detach().clone(), p.stride()) for name, p in model.named_parameters()}
    losses = losses_of(model, 4)
    engine, _ = choose("auto", model, losses, 4, multiplicity=1, precision=torch.float32, accelerator=ALONE)
    engine.detach()
    for name, p in model.named_parameters():
        same, value, stride = before[name]
        assert p is same and torch.equal(p, value) and p.stride() == stride and p.grad is None
        assert not hasattr(p, "grad_sample") or p.grad_sample is None
    assert not any("forward" in vars(layer) for layer in model.modules())


class Watched(Bookkeeping):
    """Remembers for how many examples gradients were held."""

    def __init__(self, model: nn.Module, multiplicity: int) -> None:
        super().__init__(model, multiplicity)
        self.examples: set[int] = set()

    def _sum(self, tap: Any, found: Any, *rest: Any) -> None:
        self.examples |= {len(gradient) for gradient in found.kept.values()}
        super()._sum(tap, found, *rest)


def test_rows_of_more_draws_cost_no_gradient_by_draw() -> None:
    """What is held for an example does not grow with its draws."""
    model, held = build("plain"), []
    for multiplicity in (1, 8):
        engine = Watched(model, multiplicity)
        clip(engine, model, losses_of(model, 2, multiplicity), 2, 1.0)
        engine.detach()
        held.append(engine.examples)
    assert held == [{2}, {2}]
