"""How many differing bits still mean "the same image": chosen so that chance alone makes less than one pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unmem.mitigations.dedup import hamming

# imagededup's default; and a fifth of the bits, which the perception library gives for a phash of 16 x 16
RECOMMENDED = {64: 10, 256: 51}
BANDED = 15  # a search by bands files each hash under 24 keys then, and under 448 at 31 bits
TAIL, DEVIATIONS = 0.01, 2.326  # a quantile, and how many standard deviations it is from the mean of a normal
SAMPLE = 2_000  # images whose distances are looked at: two million pairs


@dataclass(frozen=True)
class Threshold:
    """A Hamming radius and why it was taken.

    Attributes:
        max_distance: in bits.
        reason: one sentence for the user.
    """

    max_distance: int
    reason: str


def chance_pairs(images: int, bits: float, distance: float, differ: float = 0.5) -> float:
    """Expected pairs of unrelated images within a distance, ``C(n, 2) P(Binomial(bits, differ) <= distance)``.

    Args:
        images: n, how many there are.
        bits: independent bits of a hash; may be a fraction, as estimated from data.
        distance: differing bits, 0 to ``bits``.
        differ: the probability that a bit differs between two unrelated images.
    """
    from scipy.special import betainc

    below = 1.0 if distance >= bits else float(betainc(bits - distance, distance + 1, 1 - differ))
    return images * (images - 1) / 2 * below


def choose(
    images: int,
    codes: npt.NDArray[np.uint64],
    rng: np.random.Generator,
    *,
    most: int | None = None,
    comparisons: int = 1,
) -> Threshold:
    """The largest radius at which less than one chance pair is expected, and at most the recommended one.

    Chance is judged twice: for ideal hashes, whose bits are independent coins, and for the data's own, whose bits
    depend on each other: among portraits, digits or playing cards even unrelated images are somewhat alike. See
    :func:`degrees_of_freedom`.

    Args:
        images: n, how many will be compared with each other.
        codes: uint64 [m, w], distinct hashes of these images, or of a part of them.
        rng: draws the sample.
        most: the largest radius to take; None is the recommended one.
        comparisons: of each pair of images; more than one where turned ones count, too.
    """
    bits = 64 * codes.shape[1]
    limits = {f"ideal {bits}-bit hashes": _largest(images, bits, bits, 0.5, comparisons)}
    if len(codes) >= 100:
        ordered = codes[np.lexsort(codes.T)]  # the sample must not depend on the order in which images came
        some = ordered[rng.choice(len(ordered), min(SAMPLE, len(ordered)), replace=False)]
        free, differ = degrees_of_freedom(some)
        source = f"this data's hashes, which vary like {free:.0f} independent bits,"
        limits[source] = _largest(images, bits, free, differ, comparisons)
    source, found = min(limits.items(), key=lambda entry: entry[1])
    if found < 0:
        return Threshold(0, f"by estimate {source} make chance pairs among {images:,} distinct hashes even where equal")
    most = RECOMMENDED[bits] if most is None else most
    if found >= most:
        return Threshold(
            most, f"the recommended radius for {bits} bits; chance allows {found} among {images:,} distinct hashes"
        )
    return Threshold(
        found,
        f"the largest at which by estimate {source} make less than one chance pair among {images:,} distinct ones",
    )


def degrees_of_freedom(codes: npt.NDArray[np.uint64]) -> tuple[float, float]:
    """How many independent bits (at most all) would spread as these hashes do, and how likely one differs.

    Daugman's ``p (1 - p) / variance`` (How iris recognition works, 2004, section 4). The variance is taken from the
    distance between the median and the nearest hundredth of the pairs: the side that chance pairs come from, and
    a quantile that true duplicates do not reach unless they are a hundredth of all pairs.

    Args:
        codes: uint64 [m, w], m at least 2, of unrelated images for the most part.
    """
    bits = 64 * codes.shape[1]
    counts = np.zeros(bits + 1)
    for position in range(len(codes) - 1):
        counts += np.bincount(hamming.distances(codes[position], codes[position + 1 :]), minlength=bits + 1)
    below = np.cumsum(counts) / counts.sum()
    median, low = (float(np.interp(q, below, np.arange(bits + 1) + 0.5)) for q in (0.5, TAIL))
    differ = min(max(median / bits, 1 / bits), 0.5)
    spread = max(median - low, 0.5) / DEVIATIONS / bits
    return min(differ * (1 - differ) / spread**2, float(bits)), differ


def _largest(images: int, bits: int, free: float, differ: float, comparisons: int) -> int:
    """The largest radius with less than one chance pair; -1 when there is none."""
    radius = -1
    while radius < bits and comparisons * chance_pairs(images, free, (radius + 1) * free / bits, differ) < 1:
        radius += 1
    return radius
