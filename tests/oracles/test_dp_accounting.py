"""What DP-SGD says it spends: against known values, between accountants, on resume, and for the warm-up's queries."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from unmem.component import UserError
from unmem.mitigations.dp import budget, plan, warmup
from unmem.mitigations.dp.accounting import Query, pld_epsilon, prv_epsilon, tuned, without_amplification
from unmem.mitigations.dp.plan import DPPlan
from unmem.mitigations.dp.warmup import Warmup
from unmem.mitigations.dp_sgd import DPSGD
from unmem.train.config import Train
from unmem.train.imageset import ImageSet
from unmem.train.update import Plain

ALONE = SimpleNamespace(process_index=0, num_processes=1, device="cpu", reduce=lambda x, how: x)
# MNIST, 60,000 images, batches of 4,096, 300 epochs, calibrated to epsilon 10 and 1; 20 epochs of fine-tuning
TEN = [Query("training", 2.383, 4_096 / 60_000, 4_394)]
ONE = [Query("training", 17.19, 4_096 / 60_000, 4_394)]
TUNING = [Query("training", 1.0, 0.02048, 976)]
CENTRAL = Query("central images", 5.0, 0.1, 50)
SMALL = DPPlan(n=100, expected_batch=10, steps=10, clip=1.0, noise_multiplier=1.0, delta=1e-3)


@pytest.mark.parametrize(
    ("count", "queries", "expected", "within"),
    [
        (prv_epsilon, TEN, 9.996, 0.005), (prv_epsilon, ONE, 0.993, 0.002), (prv_epsilon, TUNING, 3.96, 0.02),
        (pld_epsilon, TEN, 9.987, 0.005), (pld_epsilon, ONE, 0.989, 0.01), (pld_epsilon, TUNING, 3.95, 0.02),
        (without_amplification, TEN, 56.6, 0.05), (without_amplification, ONE, 4.42, 0.01),
        (without_amplification, TUNING, 28.4, 0.05),
        (lambda q, d: pld_epsilon(q, d, "replace-one"), TEN, 22.6, 0.05),
        (lambda q, d: tuned(q, d, 10), TEN, 45.6, 0.05), (lambda q, d: tuned(q, d, 10), ONE, 3.57, 0.03),
    ],
)  # fmt: skip
def test_known_epsilons(count, queries: list[Query], expected: float, within: float) -> None:
    assert count(queries, 1e-5) == pytest.approx(expected, abs=within)


@pytest.mark.parametrize(
    ("queries", "delta"),
    [
        (TEN, 1e-5), (ONE, 1e-5), (TUNING, 1e-5), ([CENTRAL], 1e-5), ([CENTRAL, *ONE], 1e-5),
        ([CENTRAL, replace(CENTRAL, steps=1, noise_multiplier=2.0), *TUNING], 1e-6),
        ([Query("a", 5.94, 0.1, 500)], 1e-3), ([Query("a", 30.0, 0.01, 10_000)], 1e-6),
        ([Query("a", 0.9, 0.001, 20_000)], 1e-6), ([Query("a", 0.8, 0.3, 1), Query("b", 4.0, 1.0, 3)], 1e-4),
    ],
)  # fmt: skip
def test_two_accountants_agree_and_less_noise_is_noticed(queries: list[Query], delta: float) -> None:
    prv, pld = prv_epsilon(queries, delta), pld_epsilon(queries, delta)
    assert abs(prv - pld) <= plan.AGREEMENT
    wrong = [replace(query, noise_multiplier=query.noise_multiplier * 2 / 3) for query in queries]
    assert abs(prv_epsilon(wrong, delta) - pld) > plan.AGREEMENT  # the negative control


def test_why_the_accountant_by_the_central_limit_is_left_out() -> None:
    from opacus.accountants import GaussianAccountant

    accountant = GaussianAccountant()
    accountant.history = [(TEN[0].noise_multiplier, TEN[0].sample_rate, TEN[0].steps)]
    assert accountant.get_epsilon(delta=1e-5) < pld_epsilon(TEN, 1e-5) - 0.05


def test_epsilon_without_amplification_is_that_of_composed_gaussians() -> None:
    """The closed form against the other accountant's composition, an epoch begun counting as a whole one."""
    queries = [Query("a", 5.0, 0.1, 50), Query("b", 3.0, 0.25, 13)]
    composed = pld_epsilon([Query("a", 5.0, 1.0, 5), Query("b", 3.0, 1.0, 4)], 1e-5)
    assert without_amplification(queries, 1e-5) == pytest.approx(composed, abs=1e-3)
    assert without_amplification(queries, 1e-5) > prv_epsilon(queries, 1e-5)


@pytest.mark.parametrize(
    ("n", "batch", "steps", "epsilon", "delta", "sigma"),
    # from the reference table: MNIST, 60,000 images, batches of 4,096, 300 epochs; and a small set
    [(60_000, 4_096, 4_394, 10.0, 1e-5, 2.383), (1_000, 100, 500, 1.0, 1e-3, 5.94)],
)
def test_calibration_agrees_with_known_noise_and_with_another_accountant(
    n: int, batch: int, steps: int, epsilon: float, delta: float, sigma: float
) -> None:
    from opacus.accountants.utils import get_noise_multiplier

    found = DPPlan.calibrate(epsilon=epsilon, delta=delta, n=n, expected_batch=batch, steps=steps, clip=1.0)
    assert found.noise_multiplier == pytest.approx(sigma, rel=0.005)
    assert epsilon - 0.02 <= found.epsilon <= epsilon
    assert abs(found.epsilon - pld_epsilon(found.queries, delta)) < 0.02
    target = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": batch / n, "steps": steps}
    assert found.noise_multiplier == get_noise_multiplier(**target, accountant="prv")


def test_what_was_asked_before_training_is_paid_from_the_same_epsilon() -> None:
    settings = {"epsilon": 3.0, "delta": 1e-4, "n": 2_000, "expected_batch": 200, "steps": 300, "clip": 1.0}
    alone, after = DPPlan.calibrate(**settings), DPPlan.calibrate(**settings, before=(CENTRAL,))
    assert after.noise_multiplier > alone.noise_multiplier
    assert after.queries == (CENTRAL, Query("training", after.noise_multiplier, 0.1, 300))
    assert 3.0 - 0.02 <= after.epsilon <= 3.0
    assert abs(after.epsilon - pld_epsilon(after.queries, 1e-4)) <= plan.AGREEMENT
    assert replace(alone, before=(CENTRAL,)).epsilon > 3.0  # the negative control: the noise of training alone
    more = replace(CENTRAL, name="more", steps=5)
    with pytest.raises(
        UserError, match=r"dp_sgd\.epsilon: 0\.3 .* no room .* take 0\.\d+ \(central images 0\.\d+; more 0\.\d+\)"
    ):
        DPPlan.calibrate(**settings | {"epsilon": 0.3}, before=(CENTRAL, more))
    with pytest.raises(UserError, match=r"dp_sgd\.epsilon: 0\.001 .* cannot be reached by 300 steps"):
        DPPlan.calibrate(**settings | {"epsilon": 0.001})


def test_what_the_plan_refuses() -> None:
    with pytest.raises(UserError, match=r"dp_sgd\.batch: 50 is more than the 40"):
        DPPlan.calibrate(epsilon=1, delta=1e-3, n=40, expected_batch=50, steps=1, clip=1.0)
    with pytest.raises(UserError, match=r"dp_sgd\.delta: 0\.1 is above 1/n"):
        DPPlan.calibrate(epsilon=1, delta=0.1, n=40, expected_batch=5, steps=1, clip=1.0)


# The statement.


def test_the_statement_carries_everything_and_a_known_seed_voids_it(tmp_path: Path, digits: ImageSet) -> None:
    train, data = Train(images=200, batch=20), digits.take(np.arange(100))
    settings = {"epsilon": 5.0, "delta": 1e-3, "batch": 10, "images": 50}
    rule = DPSGD(**settings, tuning_runs=3).update_rule(data, train, "these images", tmp_path / "a" / "state", 0)
    assert (rule.steps, rule.batch, rule.plan.sample_rate) == (5, 10, 0.1)
    spent = rule.plan.spent(holds_for="these images", void=None).as_json()
    assert spent["epsilon"] <= 5.0
    assert spent["void"] is None
    assert spent["checks"]["accountant"].startswith("PLD (dp-accounting ")
    assert spent["checks"]["pld_epsilon"] == pytest.approx(spent["epsilon"], abs=0.02)
    assert spent["checks"]["agrees"] is True
    assert spent["epsilon"] < spent["replace_one"] < spent["without_amplification"]
    assert spent["tuning"]["runs"] == 3
    assert spent["epsilon"] < spent["tuning"]["epsilon"] < 15
    assert "more than the 3 runs" in spent["not_covered"][2]
    assert spent["delta_rule"] == "0.001 is below 1/(n ln n) = 0.00217"
    json.dumps(spent, allow_nan=False)
    rule = DPSGD(**settings, known_seed=1).update_rule(data, train, "these images", tmp_path / "b" / "state", 0)
    rule.prepare(nn.Linear(2, 2), torch.optim.SGD(nn.Linear(2, 2).parameters()), ALONE)
    statement = rule.finish()
    assert statement is not None
    assert statement["void"] == "privacy_void: seed known"
    assert statement["tuning"] is None
    assert "the choice of hyper-parameters and of a checkpoint" in statement["not_covered"]


def test_where_accountants_differ_the_larger_epsilon_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    for other, stated in ((SMALL.epsilon + 0.03, SMALL.epsilon + 0.03), (SMALL.epsilon - 0.03, SMALL.epsilon)):
        monkeypatch.setattr(plan, "pld_epsilon", lambda *_, other=other: other)
        spent = SMALL.spent(holds_for="a test", void=None)
        assert spent.checks["agrees"] is False
        assert stated <= spent.epsilon <= stated + 1e-4
        assert "the larger of PRV (opacus" in spent.accountant


# The budget.


def begin(root: Path, data: ImageSet, asked: DPPlan = SMALL) -> int:
    return budget.begin(asked, data, root / "train" / "state")


@pytest.fixture
def hundred(digits: ImageSet) -> ImageSet:
    return digits.take(np.arange(100))


def test_the_secret_is_kept_to_resume_readable_to_its_owner_alone(tmp_path: Path, hundred: ImageSet) -> None:
    first, again, other = (begin(tmp_path / name, hundred) for name in "aab")
    assert first == again != other
    file = tmp_path / "a" / "train" / "state" / "secret.json"
    assert file.stat().st_mode & 0o077 == 0
    assert int(json.loads(file.read_text())["secret"]).bit_length() > 64
    file.write_text("{")
    with pytest.raises(UserError, match=r"secret\.json: damaged"):
        begin(tmp_path / "a", hundred)


def test_the_budget_is_written_first_and_tells_nothing_of_the_images(tmp_path: Path, hundred: ImageSet) -> None:
    secret = begin(tmp_path, hundred)
    found = json.loads((tmp_path / "train" / "budget.json").read_text())
    training = {"name": "training", "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 10}
    assert found["queries"] == [training]
    assert (found["delta"], found["clip"]) == (1e-3, 1.0)
    assert SMALL.epsilon <= found["epsilon"] <= SMALL.epsilon + 1e-4
    assert found["data"] == budget.fingerprint(hundred, secret) != budget.fingerprint(hundred, secret + 1)
    assert str(secret) not in json.dumps(found)


@pytest.mark.parametrize("moment", ["before", "while the secret is written", "between", "after"])
def test_a_run_killed_at_any_moment_goes_on(tmp_path: Path, hundred: ImageSet, moment: str) -> None:
    state = tmp_path / "train" / "state"
    if moment == "while the secret is written":
        state.mkdir(parents=True)
        (state / "secret.partial").write_text('{"sec')
    elif moment != "before":
        first = begin(tmp_path, hundred)
        if moment == "between":
            (tmp_path / "train" / "budget.json").unlink()
        assert begin(tmp_path, hundred) == first
    begin(tmp_path, hundred)
    assert not list(tmp_path.rglob("*partial*"))


def changed_pixel(data: ImageSet) -> ImageSet:
    images = data.images()
    images[3, 0, 0, 0] ^= 1
    return replace(data, store=images, rows=np.arange(len(data)))


@pytest.mark.parametrize(
    "change",
    [
        changed_pixel,
        lambda data: data.take(np.arange(99)),
        lambda data: data.take(np.r_[1, 0, 2:100]),
        lambda data: replace(data, labels=np.where(np.arange(100) == 7, (data.labels + 1) % 10, data.labels)),
        lambda data: replace(data, labels=None),
        lambda data: replace(data, ids=("another", *data.ids[1:])),
    ],
)
def test_a_budget_of_other_data_is_refused(tmp_path: Path, hundred: ImageSet, change) -> None:
    begin(tmp_path, hundred)
    with pytest.raises(UserError, match=r"budget\.json: belongs to another data set"):
        begin(tmp_path, change(hundred))
    begin(tmp_path, replace(hundred, store=hundred.images(), rows=np.arange(100)))  # the same images, stored elsewhere


@pytest.mark.parametrize(
    "change", [{"noise_multiplier": 0.9}, {"steps": 11}, {"clip": 2.0}, {"delta": 1e-4}, {"before": (CENTRAL,)}]
)
def test_a_budget_of_another_plan_is_refused(tmp_path: Path, hundred: ImageSet, change: dict) -> None:
    begin(tmp_path, hundred)
    with pytest.raises(UserError, match=r"budget\.json: belongs to another plan \(.+ was .+, now .+\)"):
        begin(tmp_path, hundred, replace(SMALL, **change))


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found["queries"][0].update(steps=1_000),
        lambda found: found.update(delta=0.1),
        lambda found: found.update(data="0" * 64),
        lambda found: found.update(more=1),
        lambda found: found.pop("clip"),
        lambda found: found.pop("seal"),
        lambda found: found.update(seal="é"),
        lambda found: found.clear(),
    ],
)
def test_an_edited_budget_is_refused(tmp_path: Path, hundred: ImageSet, edit) -> None:
    begin(tmp_path, hundred)
    file = tmp_path / "train" / "budget.json"
    found = json.loads(file.read_text())
    edit(found)
    file.write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"budget\.json: was edited"):
        begin(tmp_path, hundred)


def test_half_of_budget_and_secret_is_refused_where_the_run_had_begun(tmp_path: Path, hundred: ImageSet) -> None:
    begin(tmp_path, hundred)
    file, state = tmp_path / "train" / "budget.json", tmp_path / "train" / "state"
    (state / "secret.json").rename(tmp_path / "secret.json")
    with pytest.raises(UserError, match=r"budget\.json: begun, but its secret .*secret\.json is gone"):
        begin(tmp_path, hundred)
    assert not (state / "secret.json").exists()
    (tmp_path / "secret.json").rename(state / "secret.json")
    file.unlink()
    (state / "checkpoint.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"budget\.json: missing, though training had begun"):
        begin(tmp_path, hundred)
    assert not file.exists()


# The warm-up's queries.

ALL = Warmup(central=3, sample=1.0, noise_multiplier=0.5)


def slow_sums(data: ImageSet, clip: float) -> np.ndarray:
    """One by one, everybody sampled."""
    sums = np.zeros((10, 65))
    for image, label in zip(data.images(), data.labels, strict=True):
        vector = np.append(image.ravel() / 127.5 - 1, math.sqrt(64) / 4)
        norm = math.sqrt((vector**2).sum())
        sums[label] += vector * min(1.0, clip / norm)
    return sums


@pytest.mark.parametrize("clip", [None, 3.0])
def test_sums_are_of_clipped_vectors(hundred: ImageSet, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = replace(ALL, clip=clip)
    largest = math.sqrt(64 * 17 / 16)
    expected = slow_sums(hundred, clip or largest)
    np.testing.assert_allclose(asked.sums(hundred, 5, 0), expected, rtol=1e-12)
    monkeypatch.setattr(warmup, "CHUNK", 7)
    np.testing.assert_allclose(asked.sums(hundred, 5, 0), expected, rtol=1e-12)
    whole = replace(hundred, labels=None)
    np.testing.assert_allclose(asked.sums(whole, 5, 0), expected.sum(0, keepdims=True), rtol=1e-12)
    half = replace(asked, sample=0.5).sums(hundred, 5, 0)[:, -1].sum() / asked.sums(hundred, 5, 0)[:, -1].sum()
    assert 0.3 < half < 0.7


@pytest.mark.parametrize("clip", [None, 3.0])
@pytest.mark.parametrize("sample", [1.0, 0.5])
def test_one_image_changes_the_sums_by_at_most_the_clip(hundred: ImageSet, clip: float | None, sample: float) -> None:
    """Neighbouring sets, replayed with the same randomness; two images are more, as the check must see."""
    extreme = np.stack([np.zeros((8, 8, 1)), np.full((8, 8, 1), 255)]).astype(np.uint8)
    images = np.concatenate([hundred.images()[:20], extreme])
    data = ImageSet.of(images, [str(i) for i in range(22)], np.arange(22) % 10, hundred.label_names)
    asked = replace(ALL, clip=clip, sample=sample)
    bound, moves, of_two = clip or math.sqrt(64 * 17 / 16), [], []
    for last in range(22):
        rest = [i for i in range(22) if i != last]
        whole = asked.sums(data.take(np.array([*rest, last])), 5, 1)
        moves.append(float(np.linalg.norm(whole - asked.sums(data.take(np.array(rest)), 5, 1))))
        of_two.append(float(np.linalg.norm(whole - asked.sums(data.take(np.array(rest[:-1])), 5, 1))))
    assert max(moves) <= bound * (1 + 1e-12)
    assert sample < 1 or min(moves) > 0
    assert sample < 1 or max(of_two) > bound * (1 + 1e-12)


def test_the_warm_up_has_the_noise_that_the_plan_counts(hundred: ImageSet) -> None:
    """A two-sided chi-square test at the 1e-6 level accepts sigma and rejects 2/3 and 3/2 of it."""
    asked = Warmup(central=20, sample=0.3, noise_multiplier=1.7, clip=0.9)
    (query,) = asked.queries
    assert query == Query("central images", 1.7, 0.3, 20)
    noise = np.stack([asked.noisy_sums(hundred, 5, i) - asked.sums(hundred, 5, i) for i in range(query.steps)])

    def accepts(scale: float) -> bool:
        return 1e-6 < stats.chi2.cdf(float((noise**2).sum()) / scale**2, noise.size) < 1 - 1e-6

    scale = query.noise_multiplier * 0.9
    assert accepts(scale)
    assert not accepts(scale * 2 / 3)
    assert not accepts(scale * 3 / 2)
    assert stats.kstest(noise.ravel() / scale, "norm").pvalue > 1e-6
    assert len(np.unique(noise)) == noise.size  # fresh at every query, class and coordinate
    chosen = np.stack([asked.sums(hundred, 5, i)[:, -1] for i in range(20)])
    assert len(np.unique(chosen, axis=0)) > 10  # and so is the sample


def test_central_images_are_the_means_and_the_same_on_resume(hundred: ImageSet) -> None:
    exact = replace(ALL, noise_multiplier=1e-9).central_images(hundred, 5)
    means = np.stack([hundred.images()[hundred.labels == label].mean(0) for label in range(10)])
    np.testing.assert_allclose(exact.images()[:10].astype(float), means, atol=0.51)
    assert exact.labels is not None
    assert exact.labels.tolist() == 3 * list(range(10))
    assert exact.label_names == hundred.label_names
    first, again, other = (ALL.central_images(hundred, secret) for secret in (5, 5, 6))
    np.testing.assert_array_equal(first.images(), again.images())
    assert first.ids == again.ids
    assert not np.array_equal(first.images()[0], other.images()[0])
    whole = ALL.central_images(replace(hundred, labels=None), 5)
    assert (len(whole), whole.labels) == (3, None)


def test_means_that_drown_in_noise_are_left_out_or_refused(hundred: ImageSet) -> None:
    few = hundred.take(np.flatnonzero((hundred.labels != 4) | (np.arange(100) < 10)))
    loud = Warmup(central=5, sample=1.0, noise_multiplier=0.8)
    labels = loud.central_images(few, 5).labels
    assert labels is not None
    assert 4 not in labels
    assert len(labels) > 20
    with pytest.raises(UserError, match=r"dp_sgd\.warmup: about 10 images a class and query drown in noise, 41 are"):
        Warmup(sample=1.0).central_images(hundred, 5)
    with pytest.raises(UserError, match=r"dp_sgd\.warmup: about 10 images a class and query drown in noise, 33 are"):
        Warmup(sample=1.0, noise_multiplier=4.0, clip=1.0).central_images(hundred, 5)
    one, outcomes = Warmup(central=1, sample=1.0, noise_multiplier=12.0), []
    for secret in range(12):  # as likely as not
        try:
            outcomes.append(len(one.central_images(replace(hundred, labels=None), secret)))
        except UserError as error:
            outcomes.append(str(error))
    assert set(outcomes) == {1, "dp_sgd.warmup: every central image drowned in noise; raise sample, or central"}


def test_the_warm_up_trains_plainly_and_is_paid_for(tmp_path: Path, digits: ImageSet) -> None:
    train = Train(images=200, batch=20, lr=1e-4, flip=True)
    asked = Warmup(central=4, sample=0.5, noise_multiplier=2.0, images=640, batch=32, lr=0.01)
    settings = DPSGD(epsilon=5.0, delta=1e-4, batch=100, images=500, warmup=asked)
    rule = settings.update_rule(digits, train, "these", tmp_path / "state", 0)
    assert rule.warmup is not None
    central, plain = rule.warmup
    assert isinstance(plain, Plain)
    assert (len(central), plain.n, plain.steps, plain.batch, plain.lr) == (40, 40, 20, 32, 0.01)
    assert (rule.plan.before, rule.plan.steps) == (asked.queries, 5)
    assert [query.name for query in rule.plan.queries] == ["central images", "training"]
    resumed, again = asked.prepare(digits, train, budget.begin(rule.plan, digits, tmp_path / "state"))
    np.testing.assert_array_equal(central.images(), resumed.images())
    assert plain.seed == again.seed
