"""Samples of one prompt that agree with one another: patch distances between all pairs, and cliques among them.

A model that has memorized a prompt's image draws it again and again, while samples of other prompts differ from one
another. So an image is sought that many samples of one prompt are near to (Carlini et al. 2023, arXiv 2301.13188,
section 4.2): samples at most ``threshold`` apart are joined by an edge, and a prompt is flagged where at least ten
samples are all joined to one another. The distance is the largest over tiles, so that one background, which many
pictures share, does not make them alike.

Everything here is exact. Distances come from products of whole numbers, which no rounding touches before the root is
taken, so an edge at the threshold itself is an edge. Cliques come from branch and bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import torch
from numba import njit
from torch import Tensor

INTEGERS = 2**16  # columns of one product: 2^16 products of at most 2^14 each are below 2^31
FLOATS = 2**10  # the same where float32 must hold every sum: 2^10 times 2^14 is 2^24
WORD = 64  # bits


@dataclass(frozen=True)
class Clique:
    """Samples that are all near to one another.

    Attributes:
        members: int64 [k], positions of the samples, ascending.
        mean: the mean distance over its pairs.
        diameter: the largest distance over its pairs.
        medoid: the member with the least mean distance to the others; of equal ones the first.
    """

    members: np.ndarray
    mean: float
    diameter: float
    medoid: int


def tiled_distances(images: np.ndarray, tiles: int = 4) -> np.ndarray:
    """The patch distance between all pairs of images.

    Args:
        images: uint8 [n, h, w, c].
        tiles: how many there are along each side; sides that they do not divide get tiles of two sizes.

    Returns:
        float64 [n, n], symmetric: the largest over tiles of the L2 distance over the root of the tile's number of
        values, pixels in [0, 1]; 0 to 1.

    Raises:
        ValueError: for images of another type, or with fewer pixels along a side than tiles.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or min(images.shape[1:3]) < tiles:
        raise ValueError(
            f"images must be uint8 [n, h, w, c] with sides of at least {tiles}, got {images.dtype} {list(images.shape)}"
        )
    n, height, width, _ = images.shape
    if not n:
        return np.zeros((0, 0))
    largest = np.zeros((n, n))
    rows, columns = (np.linspace(0, side, tiles + 1).astype(int) for side in (height, width))
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            tile = torch.bitwise_xor(torch.from_numpy(images[:, top:bottom, left:right]), 128)  # copied by all threads
            squares = _squares(tile.view(n, -1).view(torch.int8))
            np.maximum(largest, squares / (255**2 * tile[0].numel()), out=largest)
    return np.sqrt(largest, out=largest)


def tightest_clique(distances: np.ndarray, threshold: float, size: int) -> Clique | None:
    """Of the cliques of ``size`` samples at most ``threshold`` apart, one of the least diameter; None without any.

    The clique that is left at the smallest threshold that has one: a rule that does not depend on how many further
    samples agree, so that the mean distances of two prompts can be compared. Of several with the same diameter it is
    the first that the search meets, which the distances and the samples' order decide.

    The smallest threshold is found by bisection over the distances; each step asks whether there is a clique of this
    size, as :func:`largest_clique` does with ``enough``.

    Args:
        distances: float64 [n, n], symmetric.
        threshold: the largest distance of an edge.
        size: 2 or more.
    """
    assert size >= 2
    apart = distances + 0.0
    np.fill_diagonal(apart, np.inf)
    if len(apart) < size or not len(found := largest_clique(apart <= threshold, above=size - 1, enough=size)):
        return None
    levels = np.unique(apart[apart <= threshold])
    # a sample of a clique has size - 1 others within its diameter
    least = np.partition(apart, size - 2, axis=1)[:, size - 2].min()
    low, high = np.searchsorted(levels, [least, _diameter(apart, found)])
    while low < high:
        middle = (low + high) // 2
        tighter = largest_clique(apart <= levels[middle], above=size - 1, enough=size)
        if len(tighter):
            found, high = tighter, np.searchsorted(levels, _diameter(apart, tighter))
        else:
            low = middle + 1
    within = distances[np.ix_(found, found)]
    pairs = within[np.triu_indices(size, 1)]
    return Clique(found, float(pairs.mean()), float(pairs.max()), int(found[within.sum(1).argmin()]))


def ranked(cliques: Sequence[Clique | None]) -> list[int]:
    """Positions of the cliques that there are, the least mean distance first; of equal ones the first first."""
    found = [(clique.mean, position) for position, clique in enumerate(cliques) if clique is not None]
    return [position for _, position in sorted(found)]


def largest_clique(edges: np.ndarray, *, above: int = 0, enough: int | None = None) -> np.ndarray:
    """The largest clique of a graph, exactly; or the first that is large enough.

    Samples with too few neighbours go first, and so does each whose neighbours another one has, too, unless the two
    are joined: that one can stand in for it. What is left is searched by branch and bound with the bound that colours
    give (Tomita and Kameda 2007; sets as bits after San Segundo et al. 2011), in the order of degeneracy.

    A graph may be made for which this takes long: the time is exponential in the size of the largest clique at worst.
    ``enough`` bounds it. A dense graph holds a clique of ten, which is found at once; a sparse one loses nearly all of
    its vertices before the search begins; and between the two (500 vertices, three pairs of ten joined at random) a
    search for ten takes well under a second (``benchmarks/clique.py``). Without it, 500 vertices with nine pairs of
    ten joined at random may take hours.

    Args:
        edges: bool [n, n], symmetric; the diagonal is ignored.
        above: only a larger clique counts.
        enough: a clique of this size ends the search.

    Returns:
        int64 [k], ascending; empty when no clique is larger than ``above``.
    """
    joined = edges & ~np.eye(len(edges), dtype=bool)
    kept = _core(joined, np.arange(len(joined)), above)
    kept = kept[~_dominated(joined[np.ix_(kept, kept)])]
    kept = _core(joined, kept, above)
    if len(kept) <= above:
        return np.empty(0, dtype=np.int64)
    kept = kept[_degeneracy(joined[np.ix_(kept, kept)])]
    bits = _as_words(joined[np.ix_(kept, kept)])
    found = _search(bits, above, len(edges) if enough is None else enough)
    return np.sort(kept[found])


def _squares(centred: Tensor) -> np.ndarray:
    """int64 [n, n]: squared distances between rows of int8 [n, d], which are pixels less 128."""
    width = INTEGERS if _has_integer_products() else FLOATS
    gram = np.zeros((len(centred), len(centred)), dtype=np.int64)
    for part in torch.split(centred, width, dim=1):
        gram += _product(part, width).numpy()
    lengths = gram.diagonal()
    squares: np.ndarray = lengths[:, None] + lengths - 2 * gram
    return squares


def _product(part: Tensor, width: int) -> Tensor:
    """The whole numbers of part @ part.T, for int8 [n, at most width]."""
    if width == INTEGERS:
        return torch._int_mm(part, part.T)
    values = part.float()
    return torch.mm(values, values.T).long()


@lru_cache(maxsize=1)
def _has_integer_products() -> bool:
    """Whether 8-bit products are summed in 32 bits here; processors without an instruction for it may saturate."""
    extreme = torch.tensor([[-128] * 256, [127] * 256, [-128, 127] * 128], dtype=torch.int8)
    try:
        found = torch._int_mm(extreme, extreme.T)
    except RuntimeError:  # not built for this processor
        return False
    return torch.equal(found.long(), extreme.long() @ extreme.long().T)


def _diameter(apart: np.ndarray, members: np.ndarray) -> float:
    """The largest distance between two members; the diagonal is infinite."""
    within = apart[np.ix_(members, members)]
    return float(within[np.triu_indices(len(members), 1)].max())


def _core(joined: np.ndarray, kept: np.ndarray, degree: int) -> np.ndarray:
    """The vertices of ``kept`` that are left when those with fewer than ``degree`` neighbours go, again and again."""
    while True:
        stays = joined[np.ix_(kept, kept)].sum(1) >= degree
        if stays.all():
            return kept
        kept = kept[stays]


def _dominated(joined: np.ndarray) -> np.ndarray:
    """bool [n]: vertices all of whose neighbours another one has, which is not a neighbour itself.

    In any clique that one can take the vertex's place. Of vertices with the same neighbours the first stays.
    """
    counts = joined.astype(np.float32)
    degree = joined.sum(1)
    covers = (counts @ counts == degree) & ~joined  # [i, j]: i has all of j's neighbours
    covers &= (degree[:, None] > degree) | np.triu(np.ones_like(joined), 1)
    dominated: np.ndarray = covers.any(0)
    return dominated


def _degeneracy(joined: np.ndarray) -> np.ndarray:
    """int64 [n]: vertices in the order in which the search colours them, the last the one with fewest neighbours."""
    degree = joined.sum(1)
    order = np.empty(len(joined), dtype=np.int64)
    for place in range(len(joined) - 1, -1, -1):
        vertex = int(degree.argmin())
        order[place] = vertex
        degree -= joined[vertex]
        degree[vertex] = 2 * len(joined)  # stays above all that are left
    return order


def _as_words(joined: np.ndarray) -> np.ndarray:
    """uint64 [n, words]: each vertex's neighbours, vertex v being bit v mod 64 of word v // 64."""
    n = len(joined)
    padded = np.zeros((n, -(-n // WORD) * WORD), dtype=bool)
    padded[:, :n] = joined
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


@njit(cache=True, nogil=True)
def _search(neighbours, above, enough):  # type: ignore[no-untyped-def]
    """int64 [k]: the largest clique of more than ``above`` vertices, or the first of ``enough``; empty without."""
    n, words = neighbours.shape
    candidates = np.zeros((n + 1, words), np.uint64)  # of each depth
    order = np.empty((n + 1, n), np.int32)  # the candidates that may lead on, by colour
    colour = np.empty((n + 1, n), np.int32)
    left = np.zeros(n + 1, np.int64)  # how many of them are not tried yet
    chosen = np.empty(n, np.int64)
    best, most = np.empty(0, np.int64), above
    for v in range(n):
        candidates[0, v // 64] |= np.uint64(1) << np.uint64(v % 64)
    left[0] = _colour(neighbours, candidates[0], most, order[0], colour[0])
    depth = 0
    while depth >= 0:
        left[depth] -= 1
        at = left[depth]
        if at < 0 or depth + colour[depth, at] <= most:  # all that are left have as few colours, or fewer
            depth -= 1
            continue
        v = order[depth, at]
        chosen[depth] = v
        empty = True
        for word in range(words):
            both = candidates[depth, word] & neighbours[v, word]
            candidates[depth + 1, word] = both
            empty = empty and both == 0
        candidates[depth, v // 64] &= ~(np.uint64(1) << np.uint64(v % 64))
        size = depth + 1
        if size > most and (empty or size >= enough):
            best, most = chosen[:size].copy(), size
            if size >= enough:
                return best
        if not empty:
            depth += 1
            left[depth] = _colour(neighbours, candidates[depth], most - depth, order[depth], colour[depth])
    return best


@njit(cache=True, nogil=True)
def _colour(neighbours, candidates, least, order, colour):  # type: ignore[no-untyped-def]
    """Colour the candidates greedily; list those whose colour is above ``least``, by colour, and return how many."""
    words = len(candidates)
    uncoloured = candidates.copy()
    available = np.empty(words, np.uint64)
    count, number = 0, 0
    remaining = True
    while remaining:
        number += 1
        remaining = False
        available[:] = uncoloured
        for word in range(words):
            while available[word] != 0:
                bit = available[word] & (~available[word] + np.uint64(1))
                v = word * 64 + _place(bit)
                uncoloured[word] &= ~bit
                available[word] &= ~bit
                for later in range(word, words):
                    available[later] &= ~neighbours[v, later]
                if number > least:
                    order[count], colour[count] = v, number
                    count += 1
            remaining = remaining or uncoloured[word] != 0
    return count


@njit(cache=True, nogil=True)
def _place(bit):  # type: ignore[no-untyped-def]
    """Which bit of a word is set."""
    place = 0
    for step in (32, 16, 8, 4, 2, 1):
        if bit >> np.uint64(place + step):
            place += step
    return place
