"""How well each attack tells members from non-members, and what it asks for it: many models, each audited in turn.

    python benchmarks/attack_power.py --out DIR           16 models, 1,600 images: half an hour on two cores
    python benchmarks/attack_power.py --quick             6 models, 200 images: under a minute
    python benchmarks/attack_power.py --out DIR --data FILE.npz --size 16 --images 400000

The pool is real images: scikit-learn's digits, or those of an archive. Models come in pairs: one is trained on a random
half of the pool and the other on the rest, with the network and the settings of recipes/membership.yaml, long enough to
overfit. All of them answer all attacks' questions once. Then each is audited in turn: members are the images that it
was trained on, non-members the others, and its shadows are the models of all other pairs. So each image is inside
exactly half of the shadows, be it a member or not: were the partner among them, counting would give the answer away.
Every attack of unmem/evaluate/attacks that scores single images runs with its defaults, some in further forms (FORMS).
Images whose membership an attack learnt from are no part of its figures.

A figure is the mean over audited models of the AUC, or of the true-positive rate at the threshold that the model's own
non-members set; that rate is withheld where fewer than ten false positives are expected over all models together. Its
interval is a percentile bootstrap at 95 % that resamples models and, independently, images, an image with all of its
scores by all models, since one that is hard to judge is so under all of them (Owen 2007, "The pigeonhole bootstrap"; it
errs towards width). It speaks of other models and images of this kind; that audited models share shadows is not in it.

The control runs each attack on the same answers with members drawn anew, whatever the model was trained on: its AUC
must be 0.5. Prints a table by AUC and, last, one JSON object by attack: [value, low, high] of the AUC, of the
true-positive rates at a false-positive rate of 1 % and at the least one that a single model resolves, and of the
control's AUC; and queries an image. ``--out`` keeps models and answers: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from unmem.component import UserError, build, dump, kinds
from unmem.evaluate import shadows
from unmem.evaluate.audit import Audit, Split, draw, given
from unmem.evaluate.matrix.config import Matrix
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.matrix.store import read
from unmem.evaluate.population import joined
from unmem.evaluate.results import Scores
from unmem.evaluate.rows import Rows
from unmem.rng import derive, stream
from unmem.rundir import Stage, digest
from unmem.train.config import Train
from unmem.train.datasets.digits import Digits
from unmem.train.datasets.npz import Npz
from unmem.train.imageset import ImageSet
from unmem.train.models.unet import UNet

ATTACKS = "unmem.evaluate.attacks"
ACCESS = frozenset({"predictions", "gradients", "shadows"})
MIRRORED = {"kind": "loss", "flips": True}  # what a model that was trained without flips knows nothing of
FORMS: dict[str, dict[str, Any]] = {  # beside each attack with its defaults
    "loss_mirrored": MIRRORED,
    "pian": {"kind": "pia", "normalised": True},
    "frequency_filter_secmi": {"kind": "frequency_filter", "base": {"kind": "secmi"}},
    "lira_offline": {"kind": "lira", "mode": "offline"},
    "lira_mirrored": {"kind": "lira", "base": MIRRORED},
    "lira_secmi": {"kind": "lira", "base": {"kind": "secmi"}},
    "lira_sima": {"kind": "lira", "base": {"kind": "sima"}},
    "rmia_offline": {"kind": "rmia", "mode": "offline"},
    "rmia_sima": {"kind": "rmia", "base": {"kind": "sima"}},
    "rmia_secmi": {"kind": "rmia", "base": {"kind": "secmi"}},
    "quantile_loss": {"kind": "quantile", "base": {"kind": "loss"}},
    "quantile_sima": {"kind": "quantile", "base": {"kind": "sima"}},
}
RESOLVABLE = 10  # false positives that must be expected
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Study:
    """What every process is told.

    Attributes:
        out: where models and answers are kept.
        data: an .npz archive of images; digits when unset.
        pool: images, half of which each model is trained on.
        size: side in pixels to which images are reduced.
        models: an even number.
        images: training images seen by a model in all.
        channels: of the network's levels.
        attacks: by name.
    """

    out: Path
    data: Path | None
    pool: int
    size: int | None
    models: int
    images: int
    channels: tuple[int, ...]
    attacks: dict[str, Any]
    seed: int = 0

    @cached_property
    def everything(self) -> Audit:
        """The pool, in two groups that mean nothing."""
        source, _ = (Digits() if self.data is None else Npz(path=self.data)).load(self.out / "scratch")
        half = self.pool // 2
        chosen = draw(source, Split(members=half, nonmembers=self.pool - half), self.seed)
        if self.size is None:
            return chosen
        return given(reduced(chosen.data, self.size), chosen.members, chosen.nonmembers, self.seed)

    def inside(self, number: int) -> np.ndarray:
        """bool [pool]: what a model is trained on; the two of a pair divide the pool between them."""
        return self._half(number % 2, derive(self.seed, "pair", number // 2))

    def anew(self, number: int) -> np.ndarray:
        """bool [pool]: the control's members when this model is audited."""
        return self._half(0, derive(self.seed, "control", number))

    def _half(self, side: int, seed: int) -> np.ndarray:
        return joined(shadows.inside(self.everything, shadows.Shadows(count=2), side, seed))

    @property
    def readings(self) -> list[Reading]:
        return list(dict.fromkeys(reading for attack in self.attacks.values() for reading in attack.readings))

    @property
    def train(self) -> Train:
        """The settings of recipes/membership.yaml."""
        return Train(
            images=self.images, batch=64, lr=3e-3, decay="cosine", ema=0.995, prediction="v_prediction",
            noise_schedule="cosine",
        )  # fmt: skip

    def stages(self, number: int) -> tuple[Stage, Stage]:
        """A model's training, and its answers."""
        network = dump(self.network)
        ids = digest([self.everything.data.ids[i] for i in np.flatnonzero(self.inside(number))])
        folder, inputs = self.out / f"{number:02d}", {"ids": ids, "train": dump(self.train), "model": network}
        asked = sorted(reading.key for reading in self.readings)
        train = Stage(folder / "train", inputs)
        return train, Stage(folder / f"matrix-{digest(asked)[:8]}", {"upstream": train.key, "readings": asked})

    @property
    def network(self) -> UNet:
        labelled = self.everything.data.labels is not None
        return UNet(channels=self.channels, layers=1, conditioning="class" if labelled else "none")


def attacks() -> dict[str, Any]:
    """Those that score single images, given the access that there is, each with its defaults; and further forms."""
    problems: list[Any] = []
    specs = {name: {"kind": name} for name in kinds(ATTACKS)} | FORMS
    found = {name: build(ATTACKS, spec, name, problems) for name, spec in specs.items()}
    assert all(problem.message == "is required" for problem in problems), problems  # how many samples; there are none
    return {
        name: attack
        for name, attack in found.items()
        if attack is not None and attack.needs <= ACCESS and not getattr(attack, "needs_captions", False)
    }


def reduced(data: ImageSet, size: int) -> ImageSet:
    """Each pixel the mean over its area; ids stay, so that halves do not depend on the size."""
    import torch

    x = torch.from_numpy(data.images()).permute(0, 3, 1, 2).float()
    mean = torch.nn.functional.interpolate(x, size=(size, size), mode="area")
    images = mean.round().byte().permute(0, 2, 3, 1).numpy()
    return ImageSet(images, np.arange(len(images)), data.ids, data.labels, data.label_names)


def make(study: Study, number: int) -> float:
    """Train a model and ask it everything, unless that is done; the seconds that it took."""
    import torch
    from diffusers import DDPMPipeline

    from unmem.evaluate.denoisers.pixels import Pixels
    from unmem.evaluate.matrix.compute import compute
    from unmem.train.quiet import quiet
    from unmem.train.trainer import make_accelerator, train
    from unmem.train.update import Plain

    torch.set_num_threads(1)
    started = time.perf_counter()
    (training, asking), config, seed = study.stages(number), study.train, derive(study.seed, "model", number)
    accelerator = make_accelerator(config)
    if not training.finished:
        training.begin()
        data = study.everything.data.take(np.flatnonzero(study.inside(number)))
        rule = Plain(len(data), config, seed)
        folder = training.directory
        train(data, study.network, config, rule, folder, key=training.key, seed=seed, accelerator=accelerator)
        shutil.rmtree(folder / "state", ignore_errors=True)
        training.finish()
    if not asking.finished:
        asking.begin()
        with quiet(texts=False):
            pipeline = DDPMPipeline.from_pretrained(training.directory / "pipeline")
        compute(
            Pixels(pipeline, accelerator.device), study.everything.groups, study.readings, asking.directory,
            config=Matrix(), seed=derive(study.seed, "matrix"), accelerator=accelerator,
        )  # fmt: skip
        asking.finish()
    return time.perf_counter() - started


@dataclass(frozen=True)
class View:
    """A model's stored answers, by the groups of an audit: a target, or a shadow.

    Attributes:
        matrix: the folder of the answers.
        order: where in the pool the audit's members and non-members are.
        inside: bool [images] a group: what it was trained on.
        shadows: of an audited model.
    """

    matrix: Path
    order: Rows
    inside: Rows
    shadows: tuple[View, ...] = ()
    access = ACCESS

    def samples(self, count: int) -> np.ndarray:
        raise AssertionError("no model here draws images")

    def read(self, reading: Reading) -> Rows:
        answers = stored(self.matrix, reading)
        return self.order.map(lambda places: answers[places])


@cache
def stored(matrix: Path, reading: Reading) -> np.ndarray:
    """float32 [pool, columns]."""
    return joined(read(matrix, reading))


def audited(study: Study, number: int, control: bool) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """One model under all attacks.

    Returns bool [pool], who is a member, and by attack the scores and whether they count, both [pool].
    """
    data, member = study.everything.data, study.anew(number) if control else study.inside(number)
    names = np.array(data.ids)
    audit = given(data, list(names[member]), list(names[~member]), study.seed)
    order = Rows(data.positions(audit.members), data.positions(audit.nonmembers))

    def view(other: int, shadows: tuple[View, ...] = ()) -> View:
        inside = study.inside(other)
        return View(study.stages(other)[1].directory, order, order.map(lambda at: inside[at]), shadows)

    others = tuple(view(other) for other in range(study.models) if other // 2 != number // 2)
    target, found = view(number, others), {}
    for name, attack in study.attacks.items():
        result = attack.run(target, audit, derive(study.seed, "attack", number))
        if isinstance(result, Scores):
            found[name] = _by_place(result, order)
    return member, found


def _by_place(result: Scores, order: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Scores and whether they count, in the pool's order."""
    places = joined(order)
    scores, counts = np.empty(len(places)), np.ones(len(places), dtype=bool)
    scores[places] = np.concatenate([result.members, result.nonmembers])
    for mask, where in ((result.fitted_members, order.members), (result.fitted_nonmembers, order.nonmembers)):
        if len(mask):
            counts[where[mask]] = False
    return scores, counts


def figures(scores: np.ndarray, member: np.ndarray, weights: np.ndarray, rates: tuple[float, ...]) -> np.ndarray:
    """AUC, and the true-positive rates at these false-positive rates, [1 + rates, resamples].

    Args: scores [n], member bool [n], weights [resamples, n]: how often each image is in each resample.
    """
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan))  # equal scores are one step of the curve
    heavy, member = weights[:, order], member[order]
    hits, alarms = (np.add.reduceat(heavy * side, starts, axis=1) for side in (member, ~member))
    tpr, fpr = (np.cumsum(part, axis=1) / part.sum(1, keepdims=True) for part in (hits, alarms))
    height = tpr - hits / hits.sum(1, keepdims=True) / 2
    found = [(height * alarms).sum(1) / alarms.sum(1)]
    for rate in rates:
        below = (fpr <= rate + 1e-9).sum(1)  # the largest empirical rate that is at most this one
        found.append(np.where(below > 0, tpr[np.arange(len(tpr)), np.maximum(below - 1, 0)], 0.0))
    return np.stack(found)


Found = list[tuple[np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]]


def estimates(found: Found, name: str, rates: tuple[float, ...], resamples: int, seed: int) -> list[Any]:
    """[value, low, high] of the AUC and of each true-positive rate, None where it cannot be resolved."""
    n, k, rng = len(found[0][0]), len(found), stream(seed, "bootstrap")  # the same resamples for all attacks
    images = np.vstack([np.ones(n), rng.multinomial(n, np.full(n, 1 / n), resamples)])
    models = np.vstack([np.ones(k), rng.multinomial(k, np.full(k, 1 / k), resamples)])
    values, negatives = np.zeros((1 + len(rates), 1 + resamples)), 0
    for share, (member, scored) in zip(models.T / k, found, strict=True):
        scores, counts = scored[name]
        values += share * figures(scores[counts], member[counts], images[:, counts], rates)
        negatives += int((counts & ~member).sum())
    ends = np.quantile(values[:, 1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1).T
    rows = [[round(float(x), 4) for x in (value, *end)] for value, end in zip(values[:, 0], ends, strict=True)]
    resolved = [True, *(rate * negatives >= RESOLVABLE for rate in rates)]
    return [row if known else None for row, known in zip(rows, resolved, strict=True)]


def queries(attack: Any) -> int:
    """Evaluations of the audited network an image; readings of one probe share them."""
    return sum(probe.queries for probe in {reading.probe for reading in attack.readings})


def shown(estimate: list[float] | None) -> str:
    return "withheld" if estimate is None else "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few small models: under a minute")
    parser.add_argument("--out", type=Path, help="where models and answers are kept; nowhere when unset")
    parser.add_argument("--data", type=Path, help="an .npz archive of images; digits when unset")
    parser.add_argument("--pool", type=int, help="images; 1,600 (--quick: 200)")
    parser.add_argument("--size", type=int, help="side in pixels to which images are reduced")
    parser.add_argument("--models", type=int, help="an even number; 16 (--quick: 6)")
    parser.add_argument("--images", type=int, help="that a model sees in training; 160 (--quick: 120) times its half")
    parser.add_argument("--channels", type=int, nargs="+", default=(16, 32), help="of the network's levels")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, when unset")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, of one thread each")
    arguments = parser.parse_args()
    models, pool, epochs, resamples = (6, 200, 120, 200) if arguments.quick else (16, 1600, 160, 1000)
    models, pool = arguments.models or models, arguments.pool or pool
    if models % 2 or models < 6:
        parser.error("--models: an even number from 6 on: lira needs each image inside and outside of two shadows")
    if pool < 120:
        parser.error("--pool: at least 120 images, of whose quarter attacks learn")
    os.environ["OMP_NUM_THREADS"] = "1"
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as scratch:
        study = Study(
            out=arguments.out or Path(scratch), data=arguments.data, pool=pool, size=arguments.size, models=models,
            images=arguments.images or epochs * (pool // 2), channels=tuple(arguments.channels), attacks=attacks(),
        )  # fmt: skip
        try:
            run(study, arguments.jobs, resamples)
        except UserError as error:
            parser.error(str(error))


def run(study: Study, jobs: int, resamples: int) -> None:
    numbers, started = range(study.models), time.perf_counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as processes:
        for number, seconds in enumerate(processes.map(make, [study] * study.models, numbers)):
            print(f"model {number}: {seconds:.0f} s", flush=True)
        real, control = (
            list(processes.map(audited, [study] * study.models, numbers, [redrawn] * study.models))
            for redrawn in (False, True)
        )
    rates = (0.01, 4 * RESOLVABLE / study.pool)  # of a model's non-members, half the pool, attacks may learn from half
    result: dict[str, Any] = {}
    for name in real[0][1]:
        auc, one, least = estimates(real, name, rates, resamples, study.seed)
        chance = estimates(control, name, (), resamples, study.seed)[0]
        asked = queries(study.attacks[name])
        result[name] = {
            "auc": auc, "tpr_at_1": one, "tpr_at_resolved": least, "queries": asked, "control_auc": chance
        }  # fmt: skip
    print(f"{study.models} models, {study.pool} images, {study.images} seen in training, ", end="")
    print(f"{time.perf_counter() - started:.0f} s; false-positive rates {rates[0]:.3g} and {rates[1]:.3g}")
    row = "{:24}{:>22}{:>22}{:>22}{:>9}{:>21}{:>22}"
    print(row.format("attack", "AUC", "TPR", "TPR", "queries", "(2 AUC - 1) / query", "AUC of the control"))
    for name, found in sorted(result.items(), key=lambda item: -item[1]["auc"][0]):
        each = f"{(2 * found['auc'][0] - 1) / found['queries']:.4f}" if found["queries"] else "-"
        cells = [shown(found[key]) for key in ("auc", "tpr_at_1", "tpr_at_resolved", "control_auc")]
        print(row.format(name, *cells[:3], found["queries"], each, cells[3]))
    off = [name for name, found in result.items() if not found["control_auc"][1] <= 0.5 <= found["control_auc"][2]]
    print(f"controls whose interval misses 0.5: {', '.join(off) or 'none'}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
