"""Screens of prompts: their formulas one image at a time, a model that memorized some prompts, figures by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests import pipelines
from tests.optimal import OptimalDenoiser
from tests.processes import Process
from unmem.component import UserError
from unmem.evaluate.analysis import Compare, analyse
from unmem.evaluate.attacked import Attacked
from unmem.evaluate.attacks.prompt_screen import PromptScreen
from unmem.evaluate.attacks.prompted_extraction import PromptedExtraction
from unmem.evaluate.audit import Audit
from unmem.evaluate.denoisers.opening import open_denoiser
from unmem.evaluate.results import Screened, load, save
from unmem.evaluate.screening import first_step
from unmem.rng import stream, torch_stream
from unmem.rundir import read_json
from unmem.train.config import Sampling
from unmem.train.imageset import ImageSet

PROMPTS = ("a four", "something else entirely", "a handwritten seven, number 12")
EDGE = 0.5  # of a network that was never trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipelines.stable_diffusion(tmp_path_factory.mktemp("sd") / "pipeline", prediction_type="v_prediction")


def test_a_first_step_is_its_formulas(folder: Path) -> None:
    """With diffusers' own parts, one image at a time; edges by SciPy."""
    denoiser = open_denoiser(folder, "cpu")
    found = first_step(denoiser, PROMPTS, draws=3, edge=EDGE, batch=4, seed=5)
    pipeline, alpha = pipelines.open_any(folder), float(denoiser.diffusion.alphas_cumprod[999])
    z = [torch.randn(4, 4, 4, generator=torch_stream(5, "screen", k))[None] for k in range(3)]

    def eps(x: torch.Tensor, text: str) -> torch.Tensor:
        states = pipeline.encode_prompt([text], "cpu", 1, False)[0]
        v = pipeline.unet(x, torch.tensor([999]), encoder_hidden_states=states).sample
        return alpha**0.5 * v + (1 - alpha) ** 0.5 * x

    with torch.no_grad():
        for row, text in zip(found, PROMPTS, strict=True):
            noise, move, edges = [], [], []
            for x in z:
                said = eps(x, text)
                noise.append(float((said - eps(x, "")).norm()))
                image = (x - (1 - alpha) ** 0.5 * said) / alpha**0.5
                move.append(float(((image - x) ** 2).mean()))
                grey = pipeline.vae.decode(image / pipeline.vae.config.scaling_factor).sample.clamp(-1, 1)
                grey = ((grey[0, 0] + 1) / 2).numpy().astype(np.float64)
                slopes = (ndimage.sobel(grey, axis, mode="nearest") for axis in (0, 1))
                edges.append(np.hypot(*slopes) > EDGE)
            agreeing = (np.mean(edges, axis=0) > 0.5).mean()
            assert 0 < agreeing < 1
            np.testing.assert_allclose(row, [np.mean(noise), np.mean(move), agreeing], rtol=1e-3)


def test_scores_depend_neither_on_the_batch_nor_on_the_other_prompts(folder: Path) -> None:
    denoiser = open_denoiser(folder, "cpu")
    whole = first_step(denoiser, PROMPTS, draws=2, edge=EDGE, batch=100, seed=0)
    one = [first_step(denoiser, [text], draws=2, edge=EDGE, batch=1, seed=0)[0] for text in PROMPTS]
    np.testing.assert_allclose(whole, one, rtol=1e-4)


class ByCaption(OptimalDenoiser):
    """The ideal memorizer of captioned images: of a caption it knows the images that have it, of no text all."""

    conditioning = "text"

    def __init__(self, training: ImageSet) -> None:
        super().__init__(training, schedule="linear")
        assert training.captions is not None
        self._captions = np.array(training.captions)

    def condition(self, count: int, labels: np.ndarray | None, captions: tuple[str, ...] | None) -> Tensor:
        texts = captions or ("",) * count
        own = np.stack([(self._captions == text) | (text == "") for text in texts])
        return torch.from_numpy(np.where(own, 0.0, -1e6))

    def predict(self, z_t: Tensor, t: Tensor, condition: Any) -> Tensor:
        return self.network(z_t, t, condition)


@pytest.fixture(scope="module")
def split(digits: ImageSet) -> Audit:
    """12 members with a caption of their own each, and 120 that share 12 captions; held-out images likewise."""
    captions = [f"number {i}" if i % 132 < 12 else f"some digit {i // 132} {i % 12}" for i in range(264)]
    data = replace(digits.take(np.arange(264)), captions=tuple(captions))
    return Audit(data, data.ids[:132], data.ids[132:], (), {})


@pytest.fixture(scope="module")
def samples(split: Audit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five samples of each member's caption, as such a model draws them: near-copies, or different images."""
    root = tmp_path_factory.mktemp("samples")
    captions, members = split.member_images.captions, split.member_images.images()
    assert captions is not None
    images, prompts = [], []
    for caption in dict.fromkeys(captions):
        places = [i for i, text in enumerate(captions) if text == caption]
        for k in range(5):
            noise = stream(0, caption, k).normal(0, 3, members.shape[1:])
            images.append(np.clip(members[places[k % len(places)]] + noise, 0, 255).astype(np.uint8))
            prompts.append(caption)
    np.save(root / "images.npy", np.stack(images))
    (root / "prompts.json").write_text(json.dumps(prompts))
    return root


ATTACK = PromptScreen(rule=PromptedExtraction(clique=4, tiles=2), keep=(0.25, 0.5, 1.0), edge=2.0)  # of 8x8 digits


def test_screens_find_what_a_model_knows_by_heart(
    samples: Path, split: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser = ByCaption(split.member_images)
    monkeypatch.setattr("unmem.evaluate.denoisers.opening.open_denoiser", lambda *_: denoiser)
    directory = tmp_path / "drawn"
    sampling = Sampling(steps=20, guidance=3.0)
    ATTACK.draw(tmp_path, samples, sampling, directory, seed=1, accelerator=Process())
    target = Attacked(frozenset({"samples", "prompts"}), samples / "images.npy", tmp_path, drawn=directory)
    result = ATTACK.run(target, split, 0)
    np.testing.assert_array_equal(result.flagged, np.arange(24) < 12)
    save(result, tmp_path / "scores.npz")
    report = analyse(load(tmp_path / "scores.npz"), split, frozenset(), Compare(), 0)
    found = report["estimates"]
    for name in ("noise", "move", "edges"):
        assert found[f"auc_{name}"]["value"] == pytest.approx(roc_auc_score(result.flagged, getattr(result, name)))
        assert found[f"auc_{name}"]["value"] > 0.9
        assert found[f"recall_{name}[0.5]"]["value"] > 0.8
        assert found[f"recall_{name}[1]"]["n"] == {"successes": 12, "trials": 12}
    assert report["evaluations"] == {"full": 5 * 20 * 2, "noise": 8, "move": 4, "edges": 4}
    assert sorted(file.name for file in directory.iterdir()) == ["evaluations.json", "screens.npy"]


def test_recall_is_counted_among_those_that_a_screen_ranks_first() -> None:
    scores = np.array([5.0, 4, 3, 3, 2, 1, 0, 0, 0, 0])
    flagged = np.array([1, 0, 1, 0, 0, 1, 0, 0, 0, 0], bool)
    keep = np.array([0.0, 0.1, 0.3, 0.31, 1.0])
    result = Screened(scores, -scores, 0 * scores, flagged, keep, np.array([8, 4, 4]), np.array(1000.0))
    report = analyse(result, None, frozenset(), Compare(), 0)  # type: ignore[arg-type]
    counts = {name: estimate["n"].get("successes") for name, estimate in report["estimates"].items()}
    assert [counts[f"recall_noise[{x:g}]"] for x in keep] == [0, 1, 2, 2, 3]
    assert [counts[f"recall_move[{x:g}]"] for x in keep] == [0, 0, 0, 0, 3]
    assert report["estimates"]["auc_edges"]["value"] == 0.5
    assert [point["recalled"] for point in report["curves"]["noise"]] == [
        0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3,
    ]  # fmt: skip
    nothing = replace(result, flagged=np.zeros(10, bool))
    found = analyse(nothing, None, frozenset(), Compare(), 0)["estimates"]  # type: ignore[arg-type]
    assert {estimate["value"] for estimate in found.values()} == {None}


def test_processes_share_the_prompts(
    folder: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unmem.evaluate.attacks.prompt_screen.PART", 5)
    for directory, processes in ((tmp_path / "alone", 1), (tmp_path / "three", 3)):
        for index in reversed(range(processes)):  # the first joins what the others have left
            process = Process(index, processes)
            ATTACK.draw(folder, samples, Sampling(steps=20), directory, seed=1, accelerator=process)
    np.testing.assert_array_equal(np.load(tmp_path / "alone/screens.npy"), np.load(tmp_path / "three/screens.npy"))
    assert read_json(tmp_path / "three/evaluations.json") == {"screen": [8, 4, 4], "full": 100.0}


def test_a_model_without_texts_is_refused(samples: Path, tmp_path: Path) -> None:
    other = pipelines.pixels(tmp_path / "pipeline")
    with pytest.raises(UserError, match="takes no texts, which prompt_screen asks it by"):
        ATTACK.draw(other, samples, Sampling(steps=2), tmp_path, seed=0, accelerator=Process())
