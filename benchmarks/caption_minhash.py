"""How fast caption signatures and the search on top of them are beside datasketch's, on one core.

    python benchmarks/caption_minhash.py           200,000 captions, datasketch on 12,000
    python benchmarks/caption_minhash.py --quick   40,000 captions, datasketch on 4,000: under a minute

Captions have 6 to 20 words out of a vocabulary with Zipf's frequencies; a tenth are near copies, with one word
changed, and a twentieth are exact copies. The two sides take turns in one process, one thread each, timed in CPU
seconds, and the best turn of each counts. First they must agree: on every bit of the signatures, and on the pairs
that are left of datasketch's candidates once those below the threshold are taken out.

The last line is a JSON object. ``over_datasketch``: signatures a second, from text, over those of ``MinHash.bulk``,
whose n-grams are cut beforehand. ``lsh_over_datasketch``: captions a second of ``captions.similar``, which verifies
every pair, over those of datasketch's n-grams, ``bulk``, insertions and queries with the same bands, which do not.
``recall``: found of all pairs of unequal captions at or above the threshold, which brute force finds; ``precision``:
of the pairs found, those that it finds, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from datasketch import MinHash, MinHashLSH

from unmem.mitigations.dedup import captions, minhash
from unmem.mitigations.dedup.pairs import Pairs

THRESHOLD, NUM_PERM, SIZE = 0.8, 128, 5
FUNCTION_WORDS = ["a", "the", "of", "in", "on", "with", "and", "at", "by", "for", "to", "from", "is", "near", "two"]


def vocabulary(random: np.random.Generator, count: int) -> list[str]:
    """Function words, then words of one to four syllables."""
    syllables = [
        start + vowel + end for start in "bcdfghklmnprstvw" for vowel in "aeiou" for end in ("", "n", "r", "s")
    ]
    lengths = random.choice([1, 2, 3, 4], count, p=[0.25, 0.45, 0.22, 0.08])
    words = ["".join(random.choice(syllables, length)) for length in lengths]
    return list(dict.fromkeys([*FUNCTION_WORDS, *words]))


def data(count: int) -> list[str]:
    """Captions in random order."""
    random = np.random.default_rng(0)
    words = np.array(vocabulary(random, 20_000))
    weights = 1 / np.arange(1, len(words) + 1)
    near, equal = count // 10, count // 20
    made = [
        random.choice(words, length, p=weights / weights.sum())
        for length in random.integers(6, 21, count - near - equal)
    ]
    for i in random.choice(len(made), near, replace=False):
        changed = made[i].copy()
        changed[random.integers(len(changed))] = random.choice(words)
        made.append(changed)
    texts = [" ".join(each) for each in made]
    texts += [texts[i] for i in random.integers(0, len(texts), equal)]
    return [texts[i] for i in random.permutation(len(texts))]


def cut(texts: list[str]) -> list[list[bytes]]:
    """Each text's n-grams, as datasketch takes them."""
    return [[text[i : i + SIZE].encode() for i in range(len(text) - SIZE + 1)] for text in texts]


def datasketch_search(texts: list[str], bands: captions.Bands) -> list[list[int]]:
    """Each caption's candidates, itself included."""
    sketches = MinHash.bulk(cut(texts), num_perm=NUM_PERM)
    index = MinHashLSH(num_perm=NUM_PERM, params=bands)
    for i, sketch in enumerate(sketches):
        index.insert(i, sketch)
    return [index.query(sketch) for sketch in sketches]


def brute_force(texts: list[str]) -> dict[tuple[int, int], float]:
    """All pairs at or above the threshold, by products of sparse matrices."""
    sets = [set(grams) for grams in cut(texts)]
    numbers = {gram: i for i, gram in enumerate(set().union(*sets))}
    sizes = np.array([len(grams) for grams in sets])
    columns = [numbers[gram] for grams in sets for gram in grams]
    rows = scipy.sparse.csr_array((np.ones(len(columns)), (np.repeat(np.arange(len(sets)), sizes), columns)))
    found = {}
    for start in range(0, len(texts), 250):
        common = (rows[start : start + 250] @ rows.T).tocoo()
        left, right = common.coords[0] + start, common.coords[1]
        values = common.data / (sizes[left] + sizes[right] - common.data)
        kept = (left < right) & (values >= THRESHOLD)
        found |= zip(zip(left[kept].tolist(), right[kept].tolist(), strict=True), values[kept].tolist(), strict=True)
    return found


def as_set(found: Pairs) -> set[tuple[int, int]]:
    return set(zip(found.left.tolist(), found.right.tolist(), strict=True))


def best(turns: int, contenders: dict[str, tuple[int, Callable[[], Any]]]) -> dict[str, float]:
    """Captions a CPU second of each, in its best turn."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(turns):
        for name, (count, run) in contenders.items():
            before = time.process_time()
            run()
            rates[name].append(count / (time.process_time() - before))
    return {name: max(each) for name, each in rates.items()}


def same_signatures(texts: list[str], ours: npt.NDArray[np.uint32]) -> bool:
    theirs = np.stack([sketch.hashvalues for sketch in MinHash.bulk(cut(texts), num_perm=NUM_PERM)])
    return bool((ours == theirs).all())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer captions: under a minute")
    quick = parser.parse_args().quick

    texts = data(40_000 if quick else 200_000)
    few = data(4_000 if quick else 12_000)
    bands = captions.choose_bands(THRESHOLD, NUM_PERM)
    print(bands.describe())

    ours = captions.similar(few, THRESHOLD)
    assert same_signatures(few, minhash.signatures(few)), "signatures differ"
    candidates = [(i, j) for i, near in enumerate(datasketch_search(few, bands)) for j in near if i < j]
    theirs = {pair for pair in candidates if captions.jaccard(few[pair[0]], few[pair[1]]) >= THRESHOLD}
    assert as_set(ours) == theirs, "pairs differ"

    truth = brute_force(few)
    unequal = {pair for pair in truth if few[pair[0]] != few[pair[1]]}
    recall = len(as_set(ours) & unequal) / len(unequal)
    precision = len(as_set(ours) & truth.keys()) / len(ours.left)

    grams = cut(few)
    rates = best(
        3,
        {
            "signatures": (len(texts), lambda: minhash.signatures(texts, num_perm=NUM_PERM)),
            "bulk": (len(few), lambda: MinHash.bulk(grams, num_perm=NUM_PERM)),
            "similar": (len(texts), lambda: captions.similar(texts, THRESHOLD, num_perm=NUM_PERM)),
            "lsh": (len(few), lambda: datasketch_search(few, bands)),
        },
    )
    print(f"{'captions a second':24}{'ours':>12}{'datasketch':>12}{'ratio':>8}")
    for name, (mine, peer) in {"signatures": ("signatures", "bulk"), "search": ("similar", "lsh")}.items():
        print(f"{name:24}{rates[mine]:12,.0f}{rates[peer]:12,.0f}{rates[mine] / rates[peer]:8.1f}")
    print(f"{len(unequal)} unequal pairs at or above {THRESHOLD} among {len(few)} captions: recall {recall:.4f}")
    summary = {
        "over_datasketch": rates["signatures"] / rates["bulk"],
        "lsh_over_datasketch": rates["similar"] / rates["lsh"],
        "recall": recall,
        "precision": precision,
        "unequal_pairs": len(unequal),
        "signatures_per_s": rates["signatures"],
        "captions_per_s": rates["similar"],
        "captions": len(texts),
        "captions_of_datasketch": len(few),
    }
    print(json.dumps({key: round(it, 4) if isinstance(it, float) else it for key, it in summary.items()}))


if __name__ == "__main__":
    main()
