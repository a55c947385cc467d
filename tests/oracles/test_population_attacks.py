"""Attacks that learn from several models or images: slow references, known distributions, nothing to find."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from tests.optimal import OptimalDenoiser
from unmem.component import UserError
from unmem.evaluate.attacks.dataset_inference import DatasetInference
from unmem.evaluate.attacks.gradient import Gradient
from unmem.evaluate.attacks.lira import LiRA, likelihood_ratio, tail
from unmem.evaluate.attacks.loss import Loss
from unmem.evaluate.attacks.pia import PIA
from unmem.evaluate.attacks.quantile import Quantile
from unmem.evaluate.attacks.rmia import RMIA, dominated, log_marginal
from unmem.evaluate.attacks.secmi import SecMI
from unmem.evaluate.audit import Audit, Split, draw
from unmem.evaluate.denoisers.pixels import Pixels
from unmem.evaluate.matrix.batch import Batch
from unmem.evaluate.matrix.compute import ask
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.population import log_errors
from unmem.evaluate.results import Scores, SetScores, load, save
from unmem.evaluate.rows import Rows
from unmem.evaluate.set_test import set_test, welch
from unmem.evaluate.statistics import auc_value
from unmem.rng import stream
from unmem.train.diffusion import make_scheduler
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet

IMAGES = 400  # members, and as many non-members
UNIT = 0.2  # standard deviation of a log error from model to model
SHIFT = 1.2  # by which being trained on moves a log error, in its standard deviations


@pytest.fixture(scope="module")
def split(digits: ImageSet) -> Audit:
    return draw(digits, Split(members=IMAGES, nonmembers=IMAGES), seed=3)


class Told:
    """A target, or a shadow, whose answers are given: the same for every reading, or made by a function of it."""

    access = frozenset({"samples", "predictions", "gradients", "shadows"})

    def __init__(self, answers: Any, *, shadows: Any = (), inside: Rows | None = None, images: Any = None) -> None:
        self._answers, self.shadows, self.inside, self._images = answers, shadows, inside, images

    def read(self, reading: Reading) -> Rows:
        rows = self._answers(reading) if callable(self._answers) else self._answers
        return rows.map(lambda values: values.reshape(len(values), -1).astype(np.float32))

    def samples(self, count: int) -> np.ndarray:
        return np.asarray(self._images[:count])


def rows(values: np.ndarray) -> Rows:
    """[2 * IMAGES, ...]: members, then non-members; the rest are generated."""
    return Rows(values[:IMAGES], values[IMAGES : 2 * IMAGES], generated=values[2 * IMAGES :])


def simulated(
    models: int, shift: float, seed: int, *, generated: int = 0, shadows_shift: float | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Log errors of a target [n] and of shadows [models, n], who is inside [models, n], and the members [n].

    Normal around each image's own mean, of spread 3, with unit variance; ``shift`` lower for what was trained on.
    """
    rng, n = stream(seed, "simulated"), 2 * IMAGES + generated
    hardness = rng.normal(0, 3, n)
    members = np.arange(n) < IMAGES
    inside = np.argsort(rng.random((models, n)), axis=0) < models // 2
    inside[:, 2 * IMAGES :] = False
    moved = shift if shadows_shift is None else shadows_shift
    own = hardness + rng.normal(size=n) - shift * members
    return own, hardness + rng.normal(size=(models, n)) - moved * inside, inside, members


def told(own: np.ndarray, shadows: np.ndarray, inside: np.ndarray) -> Told:
    """A target with shadows whose errors are exp of these log errors, in units."""
    fleet = [
        Told(rows(np.exp(UNIT * log_errors)), inside=replace(rows(mask), generated=np.empty(0)))
        for log_errors, mask in zip(shadows, inside, strict=True)
    ]
    return Told(rows(np.exp(UNIT * own)), shadows=fleet)


def unfitted(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the members and non-members that figures are about."""
    return scores.members[scores.tested.members], scores.nonmembers[scores.tested.nonmembers]


def auc_of(scores: Scores) -> float:
    return auc_value(*unfitted(scores))


def spread_of(scores: Scores) -> float:
    """Standard deviation of an AUC of independent scores where there is nothing to find."""
    m, n = (len(group) for group in unfitted(scores))
    return float(np.sqrt((m + n + 1) / (12 * m * n)))


def covers_chance(scores: Scores) -> bool:
    return abs(auc_of(scores) - 0.5) < 4.5 * spread_of(scores)


CALIBRATED = [
    LiRA(),
    LiRA(variance="per_example"),
    LiRA(mode="offline"),
    LiRA(mode="offline", variance="per_example"),
    RMIA(),
    RMIA(mode="offline"),
]


def test_errors_are_taken_by_their_log_and_other_scores_as_they_are() -> None:
    np.testing.assert_allclose(log_errors(np.array([-1.0, -np.e])), [0, -1])
    for scores in (np.array([-1.0, 0.5]), np.array([-1.0, 0.0])):
        np.testing.assert_array_equal(log_errors(scores), scores)


# --- LiRA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("online", [False, True])
def test_lira_is_its_definition_image_by_image(pooled: bool, online: bool) -> None:
    own, shadows, inside, _ = simulated(7, SHIFT, 0)
    own, shadows, inside = own[:60], shadows[:, :60], inside[:, :60]
    expected = []
    residuals: dict[bool, list[float]] = {True: [], False: []}
    for i in range(60):
        for side in (True, False):
            chosen = shadows[inside[:, i] == side, i]
            residuals[side] += list(chosen - chosen.mean())
    counts = {side: sum((inside[:, i] == side).sum() - 1 for i in range(60)) for side in (True, False)}
    shared = {side: np.sqrt(np.sum(np.square(residuals[side])) / counts[side]) for side in (True, False)}
    for i in range(60):
        fits = {}
        for side in (True, False):
            chosen = shadows[inside[:, i] == side, i]
            fits[side] = (chosen.mean(), shared[side] if pooled else chosen.std(ddof=1))
        if online:
            expected.append(stats.norm.logpdf(own[i], *fits[True]) - stats.norm.logpdf(own[i], *fits[False]))
        else:
            expected.append(-stats.norm.logsf(own[i], *fits[False]))
    found = (likelihood_ratio if online else tail)(own, shadows, inside, pooled=pooled)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attack", [LiRA(variance="per_example"), LiRA(), LiRA(mode="offline"), RMIA()], ids=str)
def test_known_normals_give_the_known_auc_far_above_the_plain_threshold(attack: Any, split: Audit) -> None:
    own, shadows, inside, _ = simulated(128, SHIFT, 1)
    target = told(own, shadows, inside)
    best, plain = stats.norm.cdf(SHIFT / np.sqrt(2)), stats.norm.cdf(SHIFT / np.sqrt(2 * (1 + 9)))
    assert auc_of(Loss().run(target, split, 0)) == pytest.approx(plain, abs=0.09)
    found = attack.run(target, split, 0)
    assert auc_of(found) > plain + 0.1
    if isinstance(attack, LiRA):
        assert auc_of(found) == pytest.approx(best, abs=0.06)


def test_few_shadows_are_better_used_with_one_variance(split: Audit) -> None:
    target = told(*simulated(8, SHIFT, 2)[:3])
    default, global_, own = (auc_of(LiRA(variance=v).run(target, split, 0)) for v in (None, "global", "per_example"))
    assert default == global_ > own


def test_generated_images_are_scored_as_members_would_be_and_change_no_figure(split: Audit) -> None:
    own, shadows, inside, _ = simulated(16, SHIFT, 4, generated=IMAGES)
    own[2 * IMAGES :] -= SHIFT  # as low a loss as that of members
    for attack in CALIBRATED:
        with_them = attack.run(told(own, shadows, inside), split, 0)
        without = attack.run(told(own[: 2 * IMAGES], shadows[:, : 2 * IMAGES], inside[:, : 2 * IMAGES]), split, 0)
        np.testing.assert_allclose(with_them.members, without.members, rtol=1e-6)
        np.testing.assert_allclose(with_them.nonmembers, without.nonmembers, rtol=1e-6)
        assert abs(auc_value(with_them.generated, with_them.members) - 0.5) < 0.1, attack
        assert auc_value(with_them.generated, with_them.nonmembers) > 0.65, attack


def test_too_few_shadows_are_refused(split: Audit) -> None:
    own, shadows, inside, _ = simulated(2, SHIFT, 5)
    for attack, count in ((LiRA(), 2), (LiRA(mode="offline"), 2), (RMIA(), 0), (RMIA(mode="offline"), 0)):
        with pytest.raises(UserError, match=r"attacks\.(lira|rmia): some image .*shadows\.count"):
            attack.run(told(own, shadows[:count], inside[:count]), split, 0)


# --- what must find nothing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", CALIBRATED, ids=str)
def test_a_target_that_saw_nothing_gives_nothing_away(attack: Any, split: Audit) -> None:
    own, shadows, inside, _ = simulated(16, 0, 6, shadows_shift=SHIFT)
    assert covers_chance(attack.run(told(own, shadows, inside), split, 0))


@pytest.mark.parametrize("attack", CALIBRATED, ids=str)
def test_shadows_that_learnt_nothing_add_nothing(attack: Any, split: Audit) -> None:
    own, shadows, inside, _ = simulated(16, 0, 7)
    assert covers_chance(attack.run(told(own, shadows, inside), split, 0))


def test_shadows_with_permuted_labels_make_lira_blind(split: Audit) -> None:
    own, shadows, inside, _ = simulated(16, SHIFT, 8)
    assert auc_of(LiRA().run(told(own, shadows, inside), split, 0)) > 0.7
    shuffled = stream(8, "labels").permuted(inside, axis=0)
    assert abs(auc_of(LiRA().run(told(own, shadows, shuffled), split, 0)) - 0.5) < 0.15


@pytest.mark.parametrize("variance", ["per_example", "global"])
def test_the_audited_model_in_its_own_fit_would_leak_its_labels(variance: Any, split: Audit) -> None:
    own, shadows, inside, members = simulated(4, 0, 9)  # nothing to find: labels are noise
    honest = LiRA(variance=variance).run(told(own, shadows, inside), split, 0)
    leaky = LiRA(variance=variance).run(told(own, np.vstack([shadows, own]), np.vstack([inside, members])), split, 0)
    assert covers_chance(honest)
    assert auc_of(leaky) > 0.7


# --- RMIA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 1.02])
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_rmia_is_its_definition_by_two_loops(mode: Any, gamma: float, split: Audit) -> None:
    own, shadows, inside, _ = simulated(6, SHIFT, 10)
    attack, public = RMIA(mode=mode, gamma=gamma, a=0.4), split.is_calibration().nonmembers
    found = attack.run(told(own, shadows, inside), split, 0)
    loss, reference = (np.exp(UNIT * values).astype(np.float32).astype(np.float64) for values in (own, shadows))
    z = IMAGES + np.flatnonzero(public)
    scale = 3 * np.median(reference[:, z])
    ratio = []
    for i in range(2 * IMAGES):
        p = np.exp(-reference[:, i] / scale)
        p_out = p[~inside[:, i]].mean()
        p_in = p[inside[:, i]].mean() if mode == "online" else 0.4 * p_out + 0.6
        ratio.append(np.exp(-loss[i] / scale) / ((p_in + p_out) / 2))
    expected = [np.mean([x / ratio[j] >= gamma for j in z]) for x in ratio]
    together = np.concatenate([found.members, found.nonmembers])
    np.testing.assert_allclose(together, expected, atol=1.01 / len(z))  # a tie may fall either way
    assert np.mean(together == expected) > 0.98
    np.testing.assert_array_equal(found.fitted_nonmembers, public)
    assert not found.fitted_members.any()


def test_rmia_counts_ties_and_an_a_of_one_adds_nothing() -> None:
    np.testing.assert_array_equal(
        dominated(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 3.0]), 0.0), [0, 2 / 3, 2 / 3]
    )
    shadows, inside = np.log([[0.2, 0.5], [0.4, 0.7]]), np.zeros((2, 2), dtype=bool)
    np.testing.assert_allclose(np.exp(log_marginal(shadows, inside, 1.0)), [0.3, 0.6])
    np.testing.assert_allclose(np.exp(log_marginal(shadows, inside, 0.0)), [0.65, 0.8])


# --- dataset inference -----------------------------------------------------------------------------------------------


def several(shift: float, seed: int) -> Told:
    """A target whose readings differ: hard images are hard for all, each reading tells a little of its own."""
    hardness = stream(seed, "hard").normal(size=2 * IMAGES)

    def answer(reading: Reading) -> Rows:
        own = stream(seed, reading.key).normal(size=2 * IMAGES)
        return rows(np.exp(UNIT * (hardness + own - shift * (np.arange(2 * IMAGES) < IMAGES))))

    return Told(answer)


def plain_p(result: SetScores) -> float:
    members, nonmembers = unfitted(result)
    return float(stats.ttest_ind(members, nonmembers, equal_var=False, alternative="greater").pvalue)


def test_welch_is_scipys() -> None:
    rng = stream(0, "welch")
    for n, m, shift in ((2, 3, 0.0), (30, 10, 1.0), (500, 40, -0.1)):
        a, b = rng.normal(shift, 2, n), rng.normal(0, 1, m)
        found = welch((n, a.mean(), a.var(ddof=1)), (m, b.mean(), b.var(ddof=1)))
        assert float(found) == pytest.approx(stats.ttest_ind(a, b, equal_var=False, alternative="greater").pvalue)
    assert welch((3, 1.0, 0.0), (3, 1.0, 0.0)) == 0.5
    assert welch((3, 2.0, 0.0), (3, 1.0, 0.0)) < 1e-300


def test_p_values_are_uniform_where_there_is_nothing(split: Audit) -> None:
    attack = DatasetInference(bases=(Loss(), SecMI(), PIA()))
    found = [plain_p(attack.run(several(0, seed), split, 0)) for seed in range(150)]
    assert stats.kstest(found, "uniform").pvalue > 1e-4


def test_a_set_is_recognised_sooner_than_its_images(split: Audit) -> None:
    result = DatasetInference(sizes=(5, 20, 50, 100, 5000)).run(several(0.8, 0), split, 0)
    assert auc_of(result) < 0.8
    members, nonmembers = unfitted(result)
    assert len(members) == len(nonmembers) == IMAGES // 2
    found = set_test(members, nonmembers, result.sizes.tolist(), 0.95, 0)
    assert found["p_value"].value == pytest.approx(plain_p(result), rel=1e-9)
    assert found["p_value"].value < 1e-4
    assert 0.4 < found["p_value_control"].value < 0.6
    power = [found[f"power[{size}]"].value for size in (5, 20, 50, 100)]
    assert power == sorted(power) and power[0] < 0.5 and power[-1] > 0.95
    assert "power[5000]" not in found
    assert max(found[f"false_alarms[{size}]"].value for size in (5, 20, 50, 100)) < 0.03
    assert found["smallest_size"].value in (50, 100)
    for estimate in found.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_subsets_are_tested_as_one_by_one() -> None:
    from unmem.evaluate.set_test import _first_moments

    values = stream(1, "subset").normal(3, 1, 50)
    sizes, mean, variance = _first_moments(values, np.array([2, 7, 50]))
    np.testing.assert_allclose(mean, [values[:k].mean() for k in sizes])
    np.testing.assert_allclose(variance, [values[:k].var(ddof=1) for k in sizes])


def test_images_learnt_from_are_no_part_of_the_test_and_few_images_are_withheld(tmp_path: Path) -> None:
    fitted = np.array([True] * 5 + [False] * 5)
    values = np.where(fitted, 1e6, np.arange(10.0))
    result = SetScores(values, -values, fitted_members=fitted, fitted_nonmembers=fitted, sizes=np.array([2, 3]))
    save(result, tmp_path / "scores.npz")
    again = load(tmp_path / "scores.npz")
    assert type(again) is SetScores
    np.testing.assert_array_equal(again.sizes, result.sizes)
    np.testing.assert_array_equal(unfitted(again)[0], np.arange(5.0, 10.0))
    withheld = set_test(values[5:6], values[5:], [2], 0.95, 0)
    assert all(estimate.value is None and estimate.note for estimate in withheld.values())


# --- quantile regression ---------------------------------------------------------------------------------------------


def hard_where_bright(audit: Audit, seed: int, shift: float) -> Told:
    """A target whose errors follow from the image's texture, but for some noise."""
    images = np.concatenate([audit.member_images.images(), audit.nonmember_images.images()])
    texture = np.abs(np.diff(images.astype(np.float64), axis=2)).mean((1, 2, 3))
    hardness = 4 * (texture - texture.mean()) / texture.std()
    noise = stream(seed, "texture").normal(size=2 * IMAGES)
    return Told(rows(np.exp(UNIT * (hardness + noise - shift * (np.arange(2 * IMAGES) < IMAGES)))))


def test_quantiles_cover_fresh_images_at_their_rate(split: Audit) -> None:
    fpr, runs = 0.1, 6
    attack = Quantile(fpr=fpr, bags=4)
    alarms = 0
    for seed in range(runs):
        # which images are public changes from run to run, as do the scores
        other = replace(split, calibration=tuple(stream(seed, "public").choice(split.nonmembers, IMAGES // 2, False)))
        alarms += int((unfitted(attack.run(hard_where_bright(split, seed, 0), other, 0))[1] > 0).sum())
    fresh = runs * IMAGES // 2
    # the threshold rests on as many images as it is tried on: twice the binomial variance
    assert abs(alarms / fresh - fpr) < 4 * np.sqrt(2 * fpr * (1 - fpr) / fresh)


def test_quantiles_find_what_hardness_hides_and_nothing_where_there_is_nothing(split: Audit) -> None:
    attack = Quantile(fpr=0.05)
    target = hard_where_bright(split, 0, 2.0)
    found = attack.run(target, split, 0)
    assert auc_of(found) > auc_of(SecMI().run(target, split, 0)) + 0.05
    np.testing.assert_array_equal(found.fitted_nonmembers, split.is_calibration().nonmembers)
    assert not found.fitted_members.any()
    assert covers_chance(attack.run(hard_where_bright(split, 1, 0), split, 0))
    with pytest.raises(UserError, match=r"data\.nonmembers"):
        attack.run(target, replace(split, calibration=split.calibration[: IMAGES // 2]), 0)


def test_quantiles_of_public_images_are_out_of_fold(split: Audit) -> None:
    pixels = np.concatenate([split.member_images.flat(), split.nonmember_images.flat()]).astype(np.float64)
    attack, ratios = Quantile(components=50), []
    for seed in range(5):
        rng = stream(seed, "linear")
        hardness = pixels @ rng.normal(0, 3, pixels.shape[1])  # worth a close fit, with features for a third of images
        other = replace(split, calibration=tuple(rng.choice(split.nonmembers, IMAGES // 2, False)))
        public = other.is_calibration().nonmembers
        found = attack.run(Told(rows(np.exp(UNIT * (hardness + rng.normal(size=2 * IMAGES))))), other, 0).nonmembers
        ratios.append(found[public].std() / found[~public].std())
    assert 0.9 < np.mean(ratios) < 1.2  # well below 1 where images are predicted by what was fitted to them


def test_generated_images_get_the_quantiles_of_images_that_look_like_them(split: Audit) -> None:
    plain = hard_where_bright(split, 3, 1.0)
    answers, fresh = plain.read(SecMI().reading), np.flatnonzero(~split.is_calibration().nonmembers)
    twin = replace(answers, generated=answers.nonmembers[fresh])
    found = Quantile().run(Told(twin, images=split.nonmember_images.images(fresh)), split, 0)
    np.testing.assert_allclose(found.generated, found.nonmembers[fresh], atol=1e-4)
    np.testing.assert_allclose(found.members, Quantile().run(plain, split, 0).members, atol=1e-4)


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["gsa1", "gsa2"])
def test_gradient_norms_are_those_of_one_image_after_the_other(
    variant: Any, digits: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    network = UNet(channels=(8, 16), layers=1, attention=(4,), conditioning="class").build((8, 8, 1), 10)
    pipeline = SimpleNamespace(unet=network, scheduler=make_scheduler("cosine", "v_prediction", 50))
    denoiser, labels = Pixels(pipeline, "cpu"), np.arange(5)
    batch = Batch(denoiser, digits.images(slice(5)), labels, None, start=3, place=("test",), seed=0)
    reading = Gradient(timesteps=3, variant=variant).readings[0]
    found = ask(batch, [reading])[reading.key]
    monkeypatch.setattr("unmem.evaluate.attacks.gradient.HELD", 4 * sum(p.numel() for p in network.parameters()))
    torch.testing.assert_close(ask(batch, [reading])[reading.key], found, rtol=1e-4, atol=1e-6)  # two images at once

    with pytest.raises(UserError, match=r"attacks\.gradient\.timesteps: 51"):
        ask(batch, [Gradient(timesteps=51).readings[0]])

    network.requires_grad_(True)
    parameters = list(network.parameters())
    assert found.shape == (5, len(parameters))
    for i in range(5):
        gradients = []
        for t in (15, 32, 49):
            eps, at = batch.noise("gradient", t)[i : i + 1], torch.tensor([t])
            loss = denoiser.diffusion.losses(network, batch.x[i : i + 1], at, eps, torch.tensor([labels[i]]))
            gradients.append(torch.autograd.grad(loss.sum(), parameters))
        columns = zip(*gradients, strict=True)
        expected = [
            sum(column).norm() / 3 if variant == "gsa1" else sum(g.norm() for g in column) / 3 for column in columns
        ]
        torch.testing.assert_close(found[i], torch.stack(expected), rtol=1e-3, atol=1e-5)


def norms(models: int, shift: float, seed: int, target_shift: float | None = None) -> Told:
    """A target and shadows with log norms of 12 parameters; the first 4 are lower for what was trained on."""
    rng, tells = stream(seed, "norms"), np.arange(12) < 4
    inside = rng.random((models, 2 * IMAGES)) < 0.5
    hardness = rng.normal(size=(2 * IMAGES, 1))

    def answers(mask: np.ndarray, lower: float) -> Rows:
        return rows(np.exp(hardness + rng.normal(size=(2 * IMAGES, 12)) - lower * mask[:, None] * tells))

    fleet = [Told(answers(mask, shift), inside=rows(mask)) for mask in inside]
    own = answers(np.arange(2 * IMAGES) < IMAGES, shift if target_shift is None else target_shift)
    return Told(own, shadows=fleet)


@pytest.mark.parametrize("classifier", ["logistic", "trees"])
def test_gradients_learn_on_shadows_alone(classifier: Any, split: Audit) -> None:
    attack = Gradient(classifier=classifier)
    found = attack.run(norms(2, 0.8, 0), split, 0)
    assert auc_of(found) > 0.7
    assert not len(found.fitted_members) and not len(found.fitted_nonmembers)
    assert covers_chance(attack.run(norms(2, 0.8, 1, target_shift=0.0), split, 0))
    assert covers_chance(attack.run(norms(2, 0.0, 2), split, 0))
    with pytest.raises(UserError, match=r"shadows\.count"):
        attack.run(norms(0, 0.8, 0), split, 0)


def test_the_ideal_memorizer_is_read_by_its_gradients(split: Audit) -> None:
    denoiser = OptimalDenoiser(split.member_images.take(np.arange(20)))
    batch = Batch(denoiser, split.member_images.images(slice(4)), None, None, start=0, place=("test",), seed=0)
    reading = Gradient(timesteps=2).readings[0]
    found = ask(batch, [reading])[reading.key]
    assert found.shape == (4, 1)
    assert torch.isfinite(found).all()
