"""The duplicates of CIFAR-10's training set, by each stage, and a page on which to judge them.

    python benchmarks/cifar10_duplicates.py --data DIR --out OUT      about 10 minutes on 2 cores
    python benchmarks/cifar10_duplicates.py --data DIR --out OUT --quick

DIR is what ``torchvision.datasets.CIFAR10(DIR)`` reads. Each line is one ``unmem dedup`` over the same files; its page
is OUT/NAME/duplicates.html. The embedding is a small network that is trained here on the test set, of which no image is
looked for (``--embed`` takes your own model instead); its threshold is the distance of the tenth nearest of the test
set's own fifty million pairs. For comparison: the study behind this project removed 5,275 images, at a similarity of
0.85 by imagededup's CNN (arXiv 2301.13188, section 7.1), which needs weights from the network. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import warnings
from pathlib import Path

import _copy_network
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from unmem.mitigations.dedup import embedding
from unmem.mitigations.dedup.engine import Local
from unmem.mitigations.dedup.find import find
from unmem.mitigations.dedup.publish import publish
from unmem.mitigations.dedup.signatures import Signing
from unmem.mitigations.dedup.work import Settings
from unmem.neighbors import top_k

PUBLISHED = 5275


class Normalised(torch.nn.Module):
    """The network behind the normalisation that a TorchScript file is given images in."""

    def __init__(self, network: _copy_network.CopyNetwork) -> None:
        super().__init__()
        self.network = network.eval()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x * self.std + self.mean)


def write_parquet(data: CIFAR10, path: Path, count: int) -> None:
    """The images as PNG files in a table, with their classes for captions."""
    rows = []
    for number in range(count):
        image, label = data[number]
        file = io.BytesIO()
        image.save(file, "PNG")
        rows.append({"key": f"{number:05}", "image": file.getvalue(), "class": data.classes[label]})
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)


def train_model(images: np.ndarray, seconds: float, path: Path) -> None:
    """Leave the trained network as a TorchScript file."""
    squares = _copy_network.pixels([Image.fromarray(image) for image in images], _copy_network.STORED)
    network, _ = _copy_network.train(squares, seconds, seed=0)
    example = torch.rand(2, 3, _copy_network.SIDE, _copy_network.SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what copy-detection models are published as
        torch.jit.trace(Normalised(network), example).save(path)


def tenth_nearest(images: np.ndarray, spec: str) -> float:
    """The cosine distance of the tenth nearest pair of these images."""
    vectors = embedding.vectors_of_arrays(images, embedding.load(spec))
    nearest = np.sort(top_k(vectors, vectors, 11).distances[:, 1:].ravel())
    return float(nearest[2 * 10 - 1] ** 2 / 2)  # each pair is seen from both sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--out", type=Path, required=True, help="the pages go here")
    parser.add_argument("--quick", action="store_true", help="the first 2,000 images, little training")
    parser.add_argument("--seconds", type=float, default=220.0, help="how long to train")
    parser.add_argument("--embed", help="your own model, as unmem dedup --embed takes it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    training, test = (CIFAR10(options.data, train=train) for train in (True, False))
    count = 2_000 if options.quick else len(training)
    table, model = options.out / "train.parquet", options.out / "copies.pt"
    if not table.exists():
        write_parquet(training, table, count)
    if not options.embed and not model.exists():
        train_model(test.data, 10.0 if options.quick else options.seconds, model)
    spec = options.embed or f"{model.resolve()}?size={_copy_network.SIDE}"
    near = tenth_nearest(test.data[: count // 5], spec)
    runs = {
        "phash 64": Settings(),
        "phash 256": Settings(signing=Signing(bits=256)),
        "phash 256, flips and turns": Settings(signing=Signing(bits=256, dihedral=True)),
        "phash 256, then embedding": Settings(signing=Signing(bits=256), embed=spec, embed_distance=near),
    }
    print(f"{'stages':<28} {'threshold':<24} {'dropped':>8} {'groups':>7} {'seconds':>8}")
    dropped = {}
    for name, settings in runs.items():
        start = time.perf_counter()
        outcome = find(
            table, options.out / name.replace(" ", "-").replace(",", ""), settings, Local(os.cpu_count() or 1)
        )
        publish(outcome, options.out / name.replace(" ", "-").replace(",", ""))
        report = outcome.report
        radius = f"{report['threshold']['max_distance']} bits"
        radius += f", cosine {near:.4f}" if settings.embed else ""
        seconds = time.perf_counter() - start
        print(f"{name:<28} {radius:<24} {report['dropped']:>8,} {report['groups']:>7,} {seconds:>8.1f}", flush=True)
        dropped[name] = report["dropped"]
    print(json.dumps({"images": count, "published": PUBLISHED, "dropped": dropped}))


if __name__ == "__main__":
    main()
