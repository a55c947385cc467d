"""Any pipeline as a denoiser: against direct calls of diffusers and transformers, and against damaged folders."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import pipelines
from tests.conftest import Asked
from unmem import progress
from unmem.component import UserError
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.audit import Split, draw
from unmem.evaluate.denoisers import texts
from unmem.evaluate.denoisers.latents import vae_of
from unmem.evaluate.denoisers.opening import check_images, open_any, open_denoiser
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.compute import ask
from unmem.evaluate.statistics import auc
from unmem.evaluate.targets.pipeline import Pipeline
from unmem.rng import stream
from unmem.train import latent_space
from unmem.train.imageset import ImageSet

MAKERS: dict[str, Callable[[Path], Path]] = {
    "pixels": pipelines.pixels,
    "classes": lambda path: pipelines.pixels(path, classes=10),
    "learned variance": lambda path: pipelines.pixels(path, out=2),
    "latents": pipelines.latents,
    "quantized": lambda path: pipelines.latents(path, quantized=True),
    "dit": pipelines.dit,
    "dit, fixed variance": lambda path: pipelines.dit(path, learned_sigma=False),
    "text": pipelines.stable_diffusion,
    "xl": pipelines.stable_diffusion_xl,
}
CAPTIONS = ("a handwritten three", "", "a seven", "a handwritten three", "x" * 100)
LABELS = np.array([3, 0, 9, 3, 10])
TIMES = torch.tensor([0, 50, 50, 300, 999])
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pipelines")
    return {name: make(root / name) for name, make in MAKERS.items()}


@pytest.fixture
def broken(saved: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy to break."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(saved[name], tmp_path / "pipeline"))

    return copy


def images(count: int = 5, channels: int = 1, size: int = 8) -> torch.Tensor:
    return torch.rand((count, channels, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1


def like(z: torch.Tensor) -> torch.Tensor:
    return torch.randn(z.shape, generator=torch.Generator().manual_seed(1))


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", ["pixels", "classes", "learned variance", "latents", "quantized"])
def test_predictions_are_the_unets(saved: dict[str, Path], name: str) -> None:
    from diffusers import UNet2DModel

    denoiser = open_denoiser(saved[name], "cpu")
    z = like(denoiser.encode(images()))
    labels = LABELS if name == "classes" else None
    network = UNet2DModel.from_pretrained(saved[name] / "unet")
    direct = network(z, TIMES, class_labels=None if labels is None else torch.from_numpy(LABELS)).sample
    found = denoiser.predict(z, TIMES, denoiser.condition(5, labels, None))
    torch.testing.assert_close(found, direct[:, : z.shape[1]])
    assert (denoiser.conditioning, denoiser.shape) == ("class" if name == "classes" else "none", (8, 8, 1))


@pytest.mark.parametrize("name", ["dit", "dit, fixed variance"])
def test_predictions_are_the_transformers_without_the_learnt_variance(saved: dict[str, Path], name: str) -> None:
    from diffusers import DiTTransformer2DModel

    denoiser = open_denoiser(saved[name], "cpu")
    z = like(denoiser.encode(images()))
    network = DiTTransformer2DModel.from_pretrained(saved[name] / "transformer").eval()
    for labels, given in ((LABELS, LABELS), (None, np.full(5, 10))):
        direct = network(z, timestep=TIMES, class_labels=torch.from_numpy(given)).sample
        assert direct.shape[1] == (8 if name == "dit" else 4)
        torch.testing.assert_close(denoiser.predict(z, TIMES, denoiser.condition(5, labels, None)), direct[:, :4])
    assert (denoiser.conditioning, denoiser.shape) == ("class", (8, 8, 1))


def test_a_transformer_by_its_older_name(broken: Callable[[str], Path]) -> None:
    path = broken("dit")
    index = json.loads((path / "model_index.json").read_text())
    edit(path / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    assert index["transformer"][1] == "DiTTransformer2DModel"
    settings = {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False}
    edit(path / "transformer" / "config.json", **settings)
    assert type(open_denoiser(path, "cpu").network).__name__ == "DiTTransformer2DModel"


def text_alone(path: Path, caption: str) -> torch.Tensor:
    """[1, tokens, d] by transformers alone."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokens = CLIPTokenizer.from_pretrained(path / "tokenizer")(
        caption, padding="max_length", max_length=pipelines.TOKENS, truncation=True, return_tensors="pt"
    )
    with torch.no_grad():
        found: torch.Tensor = CLIPTextModel.from_pretrained(path / "text_encoder")(tokens.input_ids)[0]
    return found


def test_texts_are_the_encoders_and_predictions_the_unets(saved: dict[str, Path]) -> None:
    from diffusers import UNet2DConditionModel

    path = saved["text"]
    denoiser = open_denoiser(path, "cpu")
    alone = torch.cat([text_alone(path, caption) for caption in CAPTIONS])
    condition = denoiser.condition(5, None, CAPTIONS)
    torch.testing.assert_close(condition, alone)
    assert float((condition[0] - condition[2]).abs().max()) > 1e-2  # the tokenizer knows its letters
    torch.testing.assert_close(denoiser.condition(3, LABELS[:3], None), alone[1:2].expand(3, -1, -1))
    z = like(denoiser.encode(images()))
    direct = UNet2DConditionModel.from_pretrained(path / "unet")(z, TIMES, encoder_hidden_states=alone).sample
    torch.testing.assert_close(denoiser.predict(z, TIMES, condition), direct)
    assert (denoiser.conditioning, denoiser.shape) == ("text", (8, 8, 1))


@pytest.mark.parametrize("force_zeros", [True, False])
def test_two_encoders_pooled_text_and_sizes(tmp_path: Path, force_zeros: bool) -> None:
    path = pipelines.stable_diffusion_xl(tmp_path, force_zeros)
    denoiser, pipeline = open_denoiser(path, "cpu"), open_any(path)
    z = like(denoiser.encode(images(3)))
    captions = ("a three", "", "a seven")
    tokens, pooled = [], []
    for caption in captions:
        first, second = (
            words([caption], padding="max_length", max_length=pipelines.TOKENS, truncation=True, return_tensors="pt")
            for words in (pipeline.tokenizer, pipeline.tokenizer_2)
        )
        with torch.no_grad():
            one = pipeline.text_encoder(first.input_ids, output_hidden_states=True)
            two = pipeline.text_encoder_2(second.input_ids, output_hidden_states=True)
        factor = 0.0 if force_zeros and not caption else 1.0
        tokens.append(factor * torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1))
        pooled.append(factor * two.text_embeds)
    added = {"text_embeds": torch.cat(pooled), "time_ids": torch.tensor([[8.0, 8, 0, 0, 8, 8]]).expand(3, -1)}
    direct = pipeline.unet(z, TIMES[:3], encoder_hidden_states=torch.cat(tokens), added_cond_kwargs=added).sample
    condition = denoiser.condition(3, None, captions)
    torch.testing.assert_close(denoiser.predict(z, TIMES[:3], condition), direct)
    torch.testing.assert_close(denoiser.condition(1, None, None), condition[1:2])


@pytest.mark.parametrize("name", ["latents", "quantized", "dit", "text", "xl"])
def test_latents_are_the_vaes(saved: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latent_space, "PIXELS", 128)  # two images at once
    denoiser, pipeline = open_denoiser(saved[name], "cpu"), open_any(saved[name])
    vae, x = vae_of(pipeline), images()
    z = denoiser.encode(x)
    assert z.shape == (5, 4, 4, 4)
    scale, shift = vae.config.scaling_factor, vae.config.get("shift_factor") or 0.0
    assert (scale, shift) == {"latents": (0.7, 0.2), "quantized": (0.7, 0.0)}.get(name, (0.18215, 0.0))
    with torch.no_grad():
        encoded = vae.encode(x)
        raw = encoded.latents if name == "quantized" else encoded.latent_dist.mean
        torch.testing.assert_close(z, (raw - shift) * scale)
        torch.testing.assert_close(denoiser.decode(z), vae.decode(raw).sample)


def test_latents_with_a_mean_and_a_deviation_a_channel(tmp_path: Path) -> None:
    mean, std = [0.1, -0.2, 0.3, 0.0], [1.0, 2.0, 0.5, 1.5]
    space = pipelines.vae(latents_mean=mean, latents_std=std)
    path = pipelines.stable_diffusion(tmp_path, space)
    denoiser = open_denoiser(path, "cpu")
    z = denoiser.encode(images())
    with torch.no_grad():
        raw = open_any(path).vae.encode(images()).latent_dist.mean
    wide = [torch.tensor(values).view(1, 4, 1, 1) for values in (mean, std)]
    torch.testing.assert_close(z, (raw - wide[0]) * 0.18215 / wide[1])
    with torch.no_grad():
        torch.testing.assert_close(denoiser.decode(z), open_any(path).vae.decode(raw).sample)


def asked(denoiser: Any, data: np.ndarray, attack: Loss, **rest: Any) -> tuple[Batch, np.ndarray]:
    """A batch, and the columns that the attack reads of it."""
    captions = tuple(f"number {i}" for i in range(len(data))) if denoiser.conditioning == "text" else None
    labels = np.arange(len(data)) % 10
    batch = Batch(denoiser, data, labels, captions, start=0, place=("test",), seed=0, **rest)
    return batch, ask(batch, [attack.reading])[attack.reading.key].numpy()


def grey(count: int) -> np.ndarray:
    return stream(0, "grey").integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)


def direct_losses(path: Path, batch: Batch, t: int, draw: int) -> np.ndarray:
    """The loss as training scripts write it, with diffusers' own noising; float32 [n]."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler.from_pretrained(path / "scheduler")
    z, noise, at = batch.z, batch.noise("loss", t, draw), torch.full((len(batch),), t)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(z, noise, at) if velocity else noise
    with torch.no_grad():
        predicted = batch.denoiser.predict(scheduler.add_noise(z, noise, at), at, batch.condition)
    losses: np.ndarray = (predicted - target).square().mean(dim=(1, 2, 3)).numpy()
    return losses


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("make", [pipelines.latents, pipelines.dit, pipelines.stable_diffusion])
def test_the_loss_attack_reads_the_training_loss(tmp_path: Path, make: Any, schedule: str, prediction: str) -> None:
    path = make(tmp_path, beta_schedule=schedule, beta_end=0.012, prediction_type=prediction)
    batch, columns = asked(open_denoiser(path, "cpu"), grey(7), Loss(timesteps=(0, 100, 999), draws=2))
    direct = [direct_losses(path, batch, t, draw) for t in (0, 100, 999) for draw in range(2)]
    np.testing.assert_allclose(columns, np.stack(direct, axis=1), rtol=1e-4)


def test_a_schedule_that_ends_in_pure_noise(tmp_path: Path) -> None:
    """Its last alpha_bar is zero; the loss is defined there, and steps from anywhere before it are finite."""
    path = pipelines.stable_diffusion(tmp_path, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    denoiser = open_denoiser(path, "cpu")
    assert float(denoiser.diffusion.alphas_cumprod[-1]) == 0
    batch, columns = asked(denoiser, grey(3), Loss(timesteps=(200, 999), draws=1))
    np.testing.assert_allclose(
        columns, np.stack([direct_losses(path, batch, t, 0) for t in (200, 999)], axis=1), rtol=1e-4
    )
    for t, s in ((50, 100), (998, 999), (998, 0)):
        eps = batch.eps(batch.z, t)
        assert bool(denoiser.diffusion.moved(batch.z, eps, batch.at(t), batch.at(s)).isfinite().all())


@pytest.mark.parametrize("name", list(MAKERS))
def test_answers_do_not_depend_on_the_batch(saved: dict[str, Path], name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(texts, "TEXTS", 2)
    monkeypatch.setattr(texts, "KEPT", 2 * 40 * 16 * 4)
    denoiser = open_denoiser(saved[name], "cpu")
    z, order = like(denoiser.encode(images())), torch.tensor([4, 2, 0, 1, 3])

    def answers(rows: list[int]) -> torch.Tensor:
        captions = tuple(CAPTIONS[row] for row in rows)
        condition = denoiser.condition(len(rows), LABELS[rows], captions)
        return denoiser.predict(z[rows], TIMES[rows], condition)

    whole = answers([0, 1, 2, 3, 4])
    torch.testing.assert_close(answers(order.tolist()), whole[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat([answers([row]) for row in range(5)]), whole, atol=1e-5, rtol=1e-4)


def test_a_caption_is_encoded_once(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser = open_denoiser(saved["text"], "cpu")
    seen: list[str] = []
    encoded = denoiser._encoded  # type: ignore[attr-defined]
    monkeypatch.setattr(denoiser, "_encoded", lambda captions: (seen.extend(captions), encoded(captions))[1])
    for _ in range(2):
        denoiser.condition(5, None, CAPTIONS)
    assert sorted(seen) == sorted(set(CAPTIONS))


@pytest.mark.parametrize("name", list(MAKERS))
def test_gradients_after_predictions(saved: dict[str, Path], name: str) -> None:
    """What was encoded for attacks on predictions serves those on gradients, of weights and of images."""
    denoiser = open_denoiser(saved[name], "cpu")
    assert not any(p.requires_grad for p in denoiser.network.parameters()) and not denoiser.network.training
    batch, _ = asked(denoiser, grey(2), Loss(timesteps=(100,), draws=1, flips=True))
    denoiser.network.requires_grad_(True)
    z = batch.z.clone().requires_grad_(True)
    loss = denoiser.predict(z, batch.at(100), batch.condition).square().mean()
    loss = loss + denoiser.predict(batch.mirrored, batch.at(100), batch.condition).square().mean()
    found = torch.autograd.grad(loss, [z, *denoiser.network.parameters()], allow_unused=True)
    assert bool(found[0].abs().sum() > 0) and any(grad is not None and bool(grad.any()) for grad in found[1:])


def test_half_precision_on_disk_is_opened_in_float32(broken: Callable[[str], Path]) -> None:
    path = broken("text")
    for file in ("unet/" + WEIGHTS, "vae/" + WEIGHTS, "text_encoder/model.safetensors"):
        change_weights(path / file, lambda found: found.update({key: value.half() for key, value in found.items()}))
    edit(path / "text_encoder" / "config.json", dtype="float16", torch_dtype="float16")
    pipeline = open_any(path)
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.float32}


def test_nothing_is_said(saved: dict[str, Path], capfd: pytest.CaptureFixture[str], recwarn: Any) -> None:
    """Nor about a caption that is cut short."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
    for name in ("pixels", "text"):
        denoiser = open_denoiser(saved[name], "cpu")
        denoiser.condition(1, None, ("x" * 100,))
    for logger in loggers:
        logger.removeHandler(handler)
    assert said == [] and capfd.readouterr() == ("", "") and [str(warning.message) for warning in recwarn] == []
    assert [logger.level for logger in loggers] == levels


# What cannot be used


def test_folders_that_are_no_pipelines(saved: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (tmp_path / "nowhere", r"nowhere: no such folder; needs one that DiffusionPipeline\.save_pretrained wrote"),
        (file, r"file: no such folder"),
        (tmp_path / "empty", r"empty: holds no model_index\.json"),
        (saved["pixels"] / "unet", r"unet: holds no model_index\.json"),
    ):
        for opened in (open_any, lambda path: open_denoiser(path, "cpu"), lambda path: Pipeline(path=path).access):
            with pytest.raises(UserError, match=words):
                opened(path)


def index(**parts: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / "model_index.json", **parts)


def schedule(**settings: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / "scheduler" / "scheduler_config.json", **settings)


def network(**settings: Any) -> Callable[[Path], None]:
    return lambda path: edit(path / "unet" / "config.json", **settings)


def cut(file: str) -> Callable[[Path], Any]:
    return lambda path: (path / file).write_bytes((path / file).read_bytes()[:-100])


def without(pattern: str) -> Callable[[Path], None]:
    def remove(path: Path) -> None:
        for found in list(path.glob(pattern)):
            if found.is_dir():
                shutil.rmtree(found)
            else:
                found.unlink()

    return remove


def lacking_one(file: str) -> Callable[[Path], None]:
    def lose(weights: dict[str, torch.Tensor]) -> None:
        del weights[next(key for key in weights if "conv_in" in key or "embedding" in key)]

    return lambda path: change_weights(path / file, lose)


def with_a_nan(file: str) -> Callable[[Path], None]:
    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights[min(key for key in weights if key.endswith("bias"))][0] = torch.nan

    return lambda path: change_weights(path / file, poison)


UNET, VAE, TEXT = f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"
DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("pixels", lambda path: (path / "model_index.json").write_text("{"), r"model_index\.json: cannot be read"),
    ("pixels", lambda path: (path / "model_index.json").write_text("[]"), r"model_index\.json: is no mapping"),
    ("text", without("vae"), r"vae: no such folder; model_index\.json names AutoencoderKL there"),
    ("dit", without("transformer"), r"transformer: no such folder"),
    (
        "text",
        index(vae=[None, None]),
        r"StableDiffusionPipeline of .*unet \(UNet2DConditionModel\), which is not supported",
    ),
    ("latents", cut(UNET), r"unet/diffusion_pytorch_model\.safetensors: damaged"),
    ("text", cut(TEXT), r"text_encoder/model\.safetensors: damaged"),
    ("text", without(UNET), r"cannot be opened as a StableDiffusionPipeline"),
    ("text", without("unet/config.json"), r"cannot be opened as a StableDiffusionPipeline"),
    ("text", without("tokenizer/[mtv]*[!g].*"), r"tokenizer: holds no vocabulary"),
    ("text", lacking_one(TEXT), r"text_encoder: its files hold no weights \S*embedding"),
    ("latents", lacking_one(UNET), r"unet: its files hold no weights conv_in"),
    ("latents", with_a_nan(UNET), r"unet: the weights conv_in\.bias hold NaN or infinity"),
    ("text", with_a_nan(VAE), r"vae: the weights \S+\.bias hold NaN or infinity"),
    ("text", with_a_nan(TEXT), r"text_encoder: the weights \S+\.bias hold NaN or infinity"),
    ("pixels", schedule(prediction_type="flow"), r"'flow' is not known; needs one of epsilon, v_prediction, sample"),
    ("pixels", schedule(beta_schedule="spiral"), r"scheduler: cannot be opened as a DDIMScheduler \(.*spiral"),
    (
        "pixels",
        index(scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"]),
        r"a FlowMatchEulerDiscreteScheduler has no alphas_cumprod; of flow matching",
    ),
    ("pixels", index(scheduler=["diffusers", "NoScheduler"]), r"no scheduler that diffusers knows; got NoScheduler"),
    ("pixels", network(sample_size=None), r"does not say what size of images"),
    ("pixels", network(class_embed_type="identity"), r"has class_embed_type 'identity'; such inputs"),
    ("text", index(text_encoder=["transformers", "T5EncoderModel"]), r"text_encoder \(T5EncoderModel\).*not supported"),
    ("pixels", index(_class_name="NoPipeline"), r"cannot be opened as a NoPipeline"),
    (
        "pixels",
        index(_class_name=["mine", "Mine"]),
        r"class is \['mine', 'Mine'\], none of diffusers' own; .*never run",
    ),
    ("pixels", index(unet=["mine", "Mine"]), r"unet is mine\.Mine, .*other code is never run"),
    ("text", index(text_encoder=["transformers", "AutoModel"]), r"is transformers\.AutoModel, .*code is never run"),
    ("pixels", lambda path: (path / "unet" / "diffusers.py").write_text("exit()"), r"unet/diffusers\.py: .*never run"),
]


@pytest.mark.parametrize(("name", "damage", "words"), DAMAGE, ids=[words for _, _, words in DAMAGE])
def test_damage_is_one_message(broken: Callable[[str], Path], name: str, damage: Any, words: str) -> None:
    path = broken(name)
    damage(path)
    with pytest.raises(UserError, match=words) as raised:
        open_denoiser(path, "cpu")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_networks_with_further_inputs_are_refused(tmp_path: Path) -> None:
    inpainting = pipelines.stable_diffusion(tmp_path / "inpainting", network=pipelines.text_unet(16, in_channels=9))
    with pytest.raises(UserError, match=r"9 channels in and 4 out where latents have 4; .*inpainting"):
        open_denoiser(inpainting, "cpu")
    guided = pipelines.stable_diffusion(tmp_path / "guided", network=pipelines.text_unet(16, time_cond_proj_dim=8))
    with pytest.raises(UserError, match=r"UNet2DConditionModel has time_cond_proj_dim 8; such inputs"):
        open_denoiser(guided, "cpu")


def test_texts_need_transformers_and_pixels_do_not(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r'text_encoder is CLIPTextModel, which needs transformers; run pip install "unmem\[text\]"'
    ):
        open_denoiser(saved["text"], "cpu")
    open_denoiser(saved["pixels"], "cpu")
    open_denoiser(saved["dit"], "cpu")


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, task: str, done: int, total: int, unit: str) -> None:
        raise AssertionError

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_images_that_a_network_was_not_made_for(saved: dict[str, Path], digits: ImageSet, monkeypatch: Any) -> None:
    said = Said()
    monkeypatch.setattr(progress, "_reporter", said)
    plain = replace(digits.take(np.arange(5)), labels=None)
    opened = {name: open_denoiser(saved[name], "cpu") for name in ("pixels", "classes", "dit", "text")}
    place = Path("models/some")
    colour = ImageSet.of(np.zeros((2, 16, 16, 3), dtype=np.uint8), ["a", "b"])
    with pytest.raises(
        UserError, match=r"models/some: is for 8x8 images with 1 channel; these are 16x16 .* 3 channels"
    ):
        check_images(opened["text"], colour, place)
    for name in ("classes", "dit"):
        with pytest.raises(UserError, match=r"models/some: label 11 is not among the network's classes, 0 to 9"):
            check_images(opened[name], replace(plain, labels=np.array([1, 11, 3, 12, 0])), place)
        with pytest.raises(UserError, match=r"label -1 is not"):
            check_images(opened[name], replace(plain, labels=np.array([1, -1, 3, 2, 0])), place)
        check_images(opened[name], digits, place)
    check_images(opened["pixels"], plain, place)
    check_images(opened["text"], pipelines.captioned(digits), place)
    assert said.lines == []
    check_images(opened["text"], plain, place)
    check_images(opened["dit"], plain, place)
    assert [line.partition("; ")[2] for line in said.lines] == [
        "the empty text stands for all of them", "the null class stands for all of them",
    ]  # fmt: skip


def test_a_finished_model_in_a_recipe(saved: dict[str, Path], broken: Callable[[str], Path]) -> None:
    for name, path in saved.items():
        target = Pipeline(path=path)
        drawn = name not in ("text", "xl")
        assert target.access == {"predictions", "gradients"} | ({"samples"} if drawn else set())
    copy = broken("text")
    assert Pipeline(path=copy).fingerprint() == Pipeline(path=saved["text"]).fingerprint()
    edit(copy / "scheduler" / "scheduler_config.json", beta_end=0.5)
    assert Pipeline(path=copy).fingerprint() != Pipeline(path=saved["text"]).fingerprint()
    assert open_denoiser(Pipeline(path=copy).path, "cpu").conditioning == "text"
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Pipeline(path=Path("nowhere")).fingerprint()


@pytest.mark.slow
def test_a_text_to_image_model_that_memorized_is_caught(digits: ImageSet, tmp_path: Path) -> None:
    audit = draw(pipelines.captioned(digits), Split(members=60, nonmembers=60), seed=0)
    denoiser = open_denoiser(pipelines.memorized(tmp_path, audit.training), "cpu")
    check_images(denoiser, audit.data, tmp_path)
    scores = Loss().run(Asked(denoiser, audit), audit, 0)
    assert auc(scores.members, scores.nonmembers, 0.99, stream(0, "auc")).low > 0.6
    untrained = open_denoiser(pipelines.stable_diffusion(tmp_path / "untrained"), "cpu")
    scores = Loss().run(Asked(untrained, audit), audit, 0)
    found = auc(scores.members, scores.nonmembers, 0.99, stream(0, "auc"))
    assert found.low < 0.5 < found.high
