"""What attacks hand on: scores and matches, on disk before any analysis. Larger score = more likely a member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from unmem.component import UserError
from unmem.evaluate.audit import Audit
from unmem.evaluate.matrix.reading import Reading
from unmem.evaluate.rows import Rows
from unmem.rundir import read_arrays, write_arrays
from unmem.train.config import Sampling


def _no_images() -> np.ndarray:
    return np.empty(0)


def _no_masks() -> np.ndarray:
    return np.empty(0, dtype=bool)


@dataclass(frozen=True)
class Scores:
    """Membership scores: larger means more likely a member.

    Attributes:
        members: float64 [members], in the audit's order.
        nonmembers: float64 [nonmembers], in the audit's order.
        generated: float64 [generated]: the model's own samples as a third class, a control; may be empty.
        fitted_members: bool [members]: whose membership the attack learnt from; they are no part of its figures. Empty
            where it learnt from none.
        fitted_nonmembers: bool [nonmembers], likewise.
        canaries: float64 [canaries], in the audit's order; empty without canaries.
    """

    members: np.ndarray
    nonmembers: np.ndarray
    generated: np.ndarray = field(default_factory=_no_images)
    fitted_members: np.ndarray = field(default_factory=_no_masks)
    fitted_nonmembers: np.ndarray = field(default_factory=_no_masks)
    canaries: np.ndarray = field(default_factory=_no_images)

    @property
    def tested(self) -> Rows:
        """bool [members], [nonmembers]: whose membership the attack did not learn from; figures are about them."""
        pairs = (self.members, self.fitted_members), (self.nonmembers, self.fitted_nonmembers)
        return Rows(*(~fitted if len(fitted) else np.ones(len(values), dtype=bool) for values, fitted in pairs))


@dataclass(frozen=True)
class SetScores(Scores):
    """Scores whose evidence is to be added up over a set.

    Attributes:
        sizes: int64 [k], of the subsets that are tested.
    """

    sizes: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))


@dataclass(frozen=True)
class Matches:
    """For each generated image its nearest member and its nearest held-out image, by one rule.

    Attributes:
        member: int64 [samples], position of the nearest member (the group's first, where copies form a group).
        member_distance: float64 [samples], L2 over the root of the number of values, pixels in [0, 1].
        member_ratio: float64 [samples], distance over alpha times the mean distance of the n nearest groups.
        nonmember, nonmember_distance, nonmember_ratio: the same against the held-out images.
        copies: int64 [members], images of the training set, as it was given, in the group whose first the member is; 0
            for other members.
        threshold: float64 scalar; a ratio below is a match.
        group_threshold: float64 scalar; images nearer than this count as one.
    """

    member: np.ndarray
    member_distance: np.ndarray
    member_ratio: np.ndarray
    nonmember: np.ndarray
    nonmember_distance: np.ndarray
    nonmember_ratio: np.ndarray
    copies: np.ndarray
    threshold: np.ndarray
    group_threshold: np.ndarray


@dataclass(frozen=True)
class Distances:
    """For each generated image the distance (as in :class:`Matches`) to the nearest member and held-out image.

    Attributes:
        member: float64 [samples].
        nonmember: float64 [samples].
    """

    member: np.ndarray
    nonmember: np.ndarray


@dataclass(frozen=True)
class Similarities:
    """For each generated image its most similar member and held-out image, by the cosine of embeddings.

    Attributes:
        member: int64 [samples], position of the most similar member.
        member_similarity: float64 [samples], -1 to 1.
        nonmember, nonmember_similarity: the same of the held-out images.
        held_out: float64 [held-out images], each one's similarity to the most similar other one.
        threshold: float64 scalar; a sample above it is a copy.
        taken: bool scalar: whether the threshold was taken from ``held_out``.
    """

    member: np.ndarray
    member_similarity: np.ndarray
    nonmember: np.ndarray
    nonmember_similarity: np.ndarray
    held_out: np.ndarray
    threshold: np.ndarray
    taken: np.ndarray


@dataclass(frozen=True)
class Agreements:
    """For each prompt whether its samples agree, and what the images with this caption are to them.

    Attributes:
        sample: int64 [prompts], the first of the prompt's samples; prompts are in the order of these.
        samples: int64 [prompts], how many it has, black ones left out.
        mean: float64 [prompts], mean patch distance in the tightest clique; 1 where there is none.
        medoid: int64 [prompts], the sample in the midst of the clique; -1 where there is none.
        members: int64 [prompts], how many members have the prompt as their caption.
        member: int64 [prompts], position of the one nearest to the medoid; -1 where there is none.
        member_distance: float64 [prompts], its distance as in :class:`Matches`; 1 where there is none.
        member_near: int64 [prompts], the most samples that are near to one of these members.
        nonmembers, nonmember, nonmember_distance, nonmember_near: the same of held-out images.
        planted: int64 [prompts], how many of the members were planted.
        clique: int64 scalar; so many samples must agree.
        near: float64 scalar; an image at most this far from a sample is near to it.
        black: int64 scalar; samples that are black all over, and have no part in it.
    """

    sample: np.ndarray
    samples: np.ndarray
    mean: np.ndarray
    medoid: np.ndarray
    members: np.ndarray
    member: np.ndarray
    member_distance: np.ndarray
    member_near: np.ndarray
    nonmembers: np.ndarray
    nonmember: np.ndarray
    nonmember_distance: np.ndarray
    nonmember_near: np.ndarray
    planted: np.ndarray
    clique: np.ndarray
    near: np.ndarray
    black: np.ndarray


@dataclass(frozen=True)
class Screened:
    """For each prompt what cheap screens say, and the full rule; larger means more likely memorized.

    Attributes:
        noise: float64 [prompts], what the text adds to the noise that is predicted first.
        move: float64 [prompts], how far the first step goes.
        edges: float64 [prompts], 0 to 1, what images of one step have in common.
        flagged: bool [prompts], by the full rule.
        keep: float64 [k], shares of the prompts that a screen would let through.
        evaluations: float64 [3], of the network a prompt, for each screen.
        full: float64 scalar, the same for the full rule.
    """

    noise: np.ndarray
    move: np.ndarray
    edges: np.ndarray
    flagged: np.ndarray
    keep: np.ndarray
    evaluations: np.ndarray
    full: np.ndarray


@dataclass(frozen=True)
class CanaryScores:
    """Scores of canaries beside their coins: larger means more likely inserted.

    Attributes:
        scores: float64 [canaries], in the audit's order.
        inserted: bool [canaries], the coins.
        copies: int64 [canaries], how often each is in the training set if it is inserted.
        delta: float64 scalar, of the bound on epsilon.
        confidence: float64 scalar, of the bound on epsilon.
        split: bool scalar: whether numbers of guesses are chosen on half of the canaries; else Bonferroni pays for it.
    """

    scores: np.ndarray
    inserted: np.ndarray
    copies: np.ndarray
    delta: np.ndarray
    confidence: np.ndarray
    split: np.ndarray


Result = Scores | Matches | Distances | Similarities | Agreements | Screened | CanaryScores


class Shadow(Protocol):
    """A model trained like the audited one, on a random half of the pool that it was drawn from.

    Attributes:
        inside: bool [images] a group: what it was trained on; generated images never.
    """

    @property
    def inside(self) -> Rows:
        """bool [images] a group: what it was trained on; generated images never."""

    def read(self, reading: Reading) -> Rows:
        """float32 [images, columns] a group: what this model answered."""


class Target(Protocol):
    """What is attacked.

    Attributes:
        access: what it gives, of ``samples``, ``prompts``, ``predictions``, ``gradients`` and ``shadows``.
        drawn: the folder of what the attack drew from it by itself (see :class:`DrawingAttack`).
    """

    @property
    def drawn(self) -> Path:
        """The folder of what the attack drew from it by itself."""

    @property
    def access(self) -> frozenset[str]:
        """What it gives."""

    @property
    def prompts(self) -> Sequence[str | None]:
        """What each generated image was asked for; None where that is not known."""

    def samples(self, count: int) -> np.ndarray:
        """The first ``count`` generated images, uint8 [count, h, w, c]."""

    def read(self, reading: Reading) -> Rows:
        """float32 [images, columns] a group: what the audited model answered."""

    @property
    def shadows(self) -> Sequence[Shadow]:
        """Models of the same training; the audited one is never among them."""


@runtime_checkable
class Attack(Protocol):
    """An attack: one file in ``attacks/``.

    Attributes:
        needs: the access that it asks of a target; empty for controls that never see the model.
        readings: what it reads of the matrix; none where it needs samples alone.
    """

    @property
    def needs(self) -> frozenset[str]:
        """The access that it asks of a target."""

    @property
    def readings(self) -> tuple[Reading, ...]:
        """What it reads of the matrix; none where it needs samples alone."""

    def run(self, target: Target, audit: Audit, seed: int) -> Result:
        """Attack ``target``; all randomness comes from ``seed``."""


class DrawingAttack(Attack, Protocol):
    """An attack that asks the model for more than a run draws anyhow; what it draws is a stage of its own."""

    def draw(
        self, pipeline: Path, samples: Path, sampling: Sampling, directory: Path, *, seed: int, accelerator: Any
    ) -> None:
        """Draw what :meth:`run` will find in ``target.drawn``.

        Args:
            pipeline: the model's folder.
            samples: the folder of ``images.npy``, the images drawn from it by its own rules; with ``prompts.json``
                beside it where they were asked for.
            sampling: the recipe's settings.
            directory: where to; what a killed run left there may be used.
            seed: of all randomness.
            accelerator: accelerate's; all of its processes call this.
        """


def save(result: Result, path: Path) -> None:
    """Write ``scores.npz``."""
    write_arrays(path, kind=np.array(type(result).__name__), **asdict(result))


def load(path: Path) -> Result:
    """Read what :func:`save` wrote.

    Raises:
        UserError: when the file is damaged or of an unknown kind.
    """
    arrays: dict[str, Any] = read_arrays(path)
    known: tuple[type[Result], ...] = (
        Scores, SetScores, Matches, Distances, Similarities, Agreements, Screened, CanaryScores,
    )  # fmt: skip
    classes = {cls.__name__: cls for cls in known}
    try:
        return classes[str(arrays.pop("kind"))](**arrays)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not an attack's result ({error})") from None
