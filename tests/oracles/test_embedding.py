"""Embeddings: models against their own libraries, the search against brute force, the checks against wrong models."""

from __future__ import annotations

import json
import urllib.error
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from unmem.component import UserError
from unmem.mitigations.dedup import embedding
from unmem.mitigations.dedup.embedding import Embed, between, embed, load, vectors_of_arrays, within
from unmem.mitigations.dedup.pairs import Pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # SSCD is published that way

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Crops of real photographs, of several sizes."""
    from sklearn.datasets import load_sample_images

    return [
        Image.fromarray(photograph[y : y + 90, x : x + 80 + y])
        for photograph in load_sample_images().images
        for y in (0, 50, 120)
        for x in (10, 200)
    ]


@pytest.fixture(autouse=True)
def fixed_weights() -> None:
    torch.manual_seed(0)


def unit(rows: npt.NDArray) -> npt.NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def means(images: list[Image.Image]) -> npt.NDArray[np.float32]:
    """The plainest model there is."""
    return np.stack([np.asarray(image.resize((4, 4)), np.float32).ravel() for image in images]) / 255


def squares(images: list[Image.Image], side: int) -> torch.Tensor:
    """The preprocessing in torchvision's words."""
    from torchvision import transforms

    steps = [transforms.Resize([side, side]), transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    return torch.stack([transforms.Compose(steps)(image) for image in images])


def check(spec: str, images: list[Image.Image], want: torch.Tensor) -> None:
    """The model named gives these vectors, whatever the batch."""
    model = load(spec)
    assert model.name == spec
    for batch in (64, 5, 1):
        np.testing.assert_allclose(embed(images, model, batch), unit(want.detach().numpy()), atol=2e-6)


# models


@pytest.mark.parametrize(
    ("name", "option", "side"), [("a.torchscript", "?size=40", 40), ("sscd.torchscript.pt", "", 320)]
)
def test_torchscript(tmp_path: Path, photographs: list[Image.Image], name: str, option: str, side: int) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 5, stride=4), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()
    )
    torch.jit.trace(network, torch.zeros(1, 3, 32, 32)).save(tmp_path / name)
    check(f"{tmp_path / name}{option}", photographs, network(squares(photographs, side)))


@pytest.mark.parametrize("suffix", ["pth", "safetensors", "nested.pth"])
def test_torchvision(tmp_path: Path, photographs: list[Image.Image], suffix: str) -> None:
    import safetensors.torch
    import torchvision

    network = torchvision.models.resnet18(num_classes=7).eval()
    file = tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        safetensors.torch.save_file(network.state_dict(), file)
    else:
        torch.save({"state_dict": network.state_dict()} if "nested" in suffix else network.state_dict(), file)
    network.fc = torch.nn.Identity()
    check(f"torchvision:resnet18:{file}?size=64", photographs[:6], network(squares(photographs[:6], 64)))


def test_torchvision_head_of_several_layers(tmp_path: Path, photographs: list[Image.Image]) -> None:
    import torchvision

    torch.save(torchvision.models.mobilenet_v3_small(num_classes=7).state_dict(), tmp_path / "weights.pth")
    assert embed(photographs[:2], load(f"torchvision:mobilenet_v3_small:{tmp_path / 'weights.pth'}")).shape == (2, 1024)


def image_processor(transformers: ModuleType) -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


SMALL = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SMALL, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize("kind", ["clip", "clip_vision", "dinov2", "vit"])
def test_transformers(tmp_path: Path, photographs: list[Image.Image], kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "clip":
        text = {**SMALL, "vocab_size": 50, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": 1}
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
        network = transformers.CLIPModel(config)
    elif kind == "clip_vision":
        network = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**VISION))
    elif kind == "dinov2":
        config = {**VISION, "mlp_ratio": 1}
        config.pop("intermediate_size")
        network = transformers.Dinov2Model(transformers.Dinov2Config(**config))
    else:  # its pooling has weights of its own, which many published folders lack
        network = transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False)
    network.eval().save_pretrained(tmp_path)
    processor = image_processor(transformers)
    processor.save_pretrained(tmp_path)
    pixels = processor(images=photographs, return_tensors="pt")["pixel_values"]
    if kind == "clip":
        want = network.visual_projection(network.vision_model(pixels).pooler_output)
    elif kind == "vit":
        want = network(pixels).last_hidden_state[:, 0]
    else:
        want = network(pixels).pooler_output
    check(str(tmp_path), photographs, want)


def test_transformers_without_some_weights(tmp_path: Path) -> None:
    """They would be random, and other ones in each process."""
    transformers = pytest.importorskip("transformers")
    import safetensors.torch

    network = transformers.ViTModel(transformers.ViTConfig(**VISION))
    network.save_pretrained(tmp_path)
    image_processor(transformers).save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    state.pop("layernorm.weight")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"weights are missing, among them layernorm\.weight"):
        load(str(tmp_path))


def test_timm(tmp_path: Path, photographs: list[Image.Image]) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("resnet10t", pretrained=False, num_classes=7).eval()
    timm.models.save_for_hf(network, tmp_path)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    pixels = torch.stack([transform(image) for image in photographs[:3]])
    check(str(tmp_path), photographs[:3], network.forward_head(network.forward_features(pixels), pre_logits=True))


def test_imagededup(monkeypatch: pytest.MonkeyPatch, photographs: list[Image.Image]) -> None:
    """The same vectors as imagededup's own method, here with random weights."""
    import torchvision.models
    from imagededup.methods import CNN

    network = torchvision.models.mobilenet_v3_small(weights=None)
    monkeypatch.setattr(torchvision.models, "mobilenet_v3_small", lambda **_: network)
    theirs = [CNN(verbose=False).encode_image(image_array=np.asarray(image))[0] for image in photographs[:4]]
    np.testing.assert_allclose(embed(photographs[:4], load("imagededup:cnn")), unit(np.stack(theirs)), atol=2e-6)


def test_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photographs: list[Image.Image]) -> None:
    """In the current folder, as a user's own file would be; NumPy or torch; a name within a class."""
    source = """
        import numpy as np, torch

        def grey(images):
            return np.stack([np.asarray(image.convert("L").resize((3, 3)), np.float32).ravel() for image in images])

        class Models:
            @staticmethod
            def tensor(images):
                assert all(image.mode == "RGB" for image in images)
                return torch.from_numpy(grey(images)).requires_grad_()
    """
    (tmp_path / "own_embedding.py").write_text("".join(line[8:] + "\n" for line in source.splitlines()))
    monkeypatch.chdir(tmp_path)
    mixed = [*photographs, photographs[0].convert("L"), photographs[1].convert("P")]
    found = embed(mixed, load("own_embedding:grey"))
    want = np.stack([np.asarray(image.convert("RGB").convert("L").resize((3, 3)), float).ravel() for image in mixed])
    np.testing.assert_allclose(found, unit(want), atol=1e-6)
    np.testing.assert_array_equal(embed(iter(mixed), load("own_embedding:Models.tensor"), 4), found)


# what is refused


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "embed '': no such model; allowed are package.module:callable; a TorchScript file"),
        ("resnet18", "embed 'resnet18': no such model; allowed are"),
        ("no/such/folder", "no such model; allowed are"),
        ("sscd.pt", "embed 'sscd.pt': no such file 'sscd.pt'"),
        ("sscd.pt?side=3", r"embed 'sscd.pt.side=3': after '.' only size=PIXELS is allowed, got 'side=3'"),
        ("sscd.pt?size=0", "only size=PIXELS is allowed, got 'size=0'"),
        ("torchvision:resnet18", "embed 'torchvision:resnet18': no such file"),
        ("torchvision:resnet18:none.pth", "no such file 'none.pth'"),
        ("imagededup:resnet", "embed 'imagededup:resnet': have cnn, vit, efficientnet"),
        ("no_such_module:f", "embed 'no_such_module:f': cannot be imported .*No module named 'no_such_module'"),
        ("math:no_such_name", "embed 'math:no_such_name': cannot be imported .*no_such_name"),
        ("math:pi", "embed 'math:pi': must be a callable, got float"),
    ],
)
def test_no_model(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(spec)


def test_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"a.pt': cannot be loaded .*; must be a TorchScript file"):
        load(str(tmp_path / "a.pt"))
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "b.pth")
    with pytest.raises(
        UserError, match=r"b.pth': cannot be loaded .*; the file must hold the state dict of a resnet18"
    ):
        load(f"torchvision:resnet18:{tmp_path / 'b.pth'}")
    with pytest.raises(UserError, match="torchvision has no classifier 'resnet1'"):
        load(f"torchvision:resnet1:{tmp_path / 'b.pth'}")
    with pytest.raises(UserError, match="a network that ends in a linear layer is needed"):
        load(f"torchvision:squeezenet1_0:{tmp_path / 'b.pth'}")
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 3}))
    with pytest.raises(UserError, match=r"config\.json: needs transformers' 'model_type' or timm's 'architecture'"):
        load(str(tmp_path))


class Intruder:
    """Runs code where a pickle is loaded without care."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("intruder-was-here"),))


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Intruder()}, "weights.pth")
    with pytest.raises(UserError, match="cannot be loaded"):
        load("torchvision:resnet18:weights.pth")
    assert not Path("intruder-was-here").exists()


@pytest.mark.parametrize(
    ("config", "library"), [({"model_type": "vit"}, "transformers"), ({"architecture": "x"}, "timm")]
)
def test_library_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, str], library: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=f"run pip install {library} to use it"):
        load(str(tmp_path))


def test_imagededup_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.models

    def offline(**_: object) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torchvision.models, "mobilenet_v3_small", offline)
    with pytest.raises(UserError, match=r"'imagededup:cnn': cannot be loaded .*not known.*have them in its cache"):
        load("imagededup:cnn")


@pytest.mark.parametrize(
    ("answer", "got"),
    [
        (np.ones((3, 2)), r"float64 \[3, 2\]"),
        (torch.ones(3, 2).bfloat16(), r"torch.bfloat16 \[3, 2\]"),
        (np.ones((2, 2), np.float32), r"float32 \[2, 2\]"),
        (np.ones((3, 2, 1), np.float32), r"float32 \[3, 2, 1\]"),
        (np.ones((3, 0), np.float32), r"float32 \[3, 0\]"),
        ([[1.0, 2.0]] * 3, "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_answers(answer: Any, got: str, photographs: list[Image.Image]) -> None:
    model = Embed("mine", lambda _: answer)
    with pytest.raises(UserError, match=rf"embed 'mine': must give float32 \[3, d\] of 3 images, got {got}$"):
        embed(photographs[:3], model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value: float, photographs: list[Image.Image]) -> None:
    model = Embed("mine", lambda images: means(images) + np.float32(value))
    with pytest.raises(UserError, match=r"embed 'mine': gave a value that is not finite, in float32 \[12, 48\]"):
        embed(photographs, model)


def test_width_changes(photographs: list[Image.Image]) -> None:
    model = Embed("mine", lambda images: np.ones((len(images), len(images)), np.float32))
    with pytest.raises(UserError, match="embed 'mine': gave 8 columns, then 4"):
        embed(photographs, model, 8)


# vectors


def test_lengths(photographs: list[Image.Image]) -> None:
    black = Image.new("RGB", (9, 9))
    found = embed([*photographs, black], Embed("means", means))
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found[:-1], axis=1), 1, atol=1e-6)
    assert not found[-1].any()
    assert embed([], Embed("means", means)).shape == (0, 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (7, 9, 11, channels), np.uint8)
    model = Embed("means", means)
    want = embed([Image.fromarray(image.squeeze()) for image in images], model)
    np.testing.assert_array_equal(vectors_of_arrays(images, model, 3), want)


# search


def cosine(left: npt.NDArray, right: npt.NDArray) -> npt.NDArray[np.float64]:
    """1 - cos of all pairs, in float64, at most 2; nan for zero vectors."""
    a, b = left.astype(float), right.astype(float)
    with np.errstate(invalid="ignore"):
        a, b = a / np.linalg.norm(a, axis=1, keepdims=True), b / np.linalg.norm(b, axis=1, keepdims=True)
    return np.minimum(1 - a @ b.T, 2)


def check_pairs(found: Pairs, every: npt.NDArray, limit: float, upper: bool) -> None:
    near = every <= limit
    i, j = np.nonzero(np.triu(near, 1) if upper else near)
    np.testing.assert_array_equal(found.left, i)
    np.testing.assert_array_equal(found.right, j)
    np.testing.assert_allclose(found.distance, every[i, j], rtol=1e-6, atol=1e-9)
    assert [part.dtype for part in found] == [np.int64, np.int64, np.float32]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32), n=st.integers(0, 60), m=st.integers(0, 60), d=st.integers(1, 20),
    limit=st.sampled_from([1e-4, 0.05, 0.25, 1.0, 1.7, 2.0]),
)  # fmt: skip
def test_search_is_brute_force(seed: int, n: int, m: int, d: int, limit: float) -> None:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((5, d))
    rows = centres[random.integers(0, 5, n + m)] + 0.05 * random.standard_normal((n + m, d))
    rows = unit(rows)
    rows[random.random(n + m) < 0.1] = 0
    left, right = rows[:n], rows[n:]
    assume(limit == 2 or not (np.abs(cosine(rows, rows) - limit) < 1e-7).any())  # too near to call
    check_pairs(within(left, limit), cosine(left, left), limit, upper=True)
    check_pairs(between(left, right, limit), cosine(left, right), limit, upper=False)


def test_search_at_the_border() -> None:
    """Distances that float32 cannot tell from the limit, and that float64 can."""
    angles = np.arccos(1 - np.array([0.25 - 1e-6, 0.25 + 1e-6, 1e-4 - 1e-7, 1e-4 + 1e-7]))
    others = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert between(np.float32([[1, 0]]), others, 0.25).right.tolist() == [0, 2, 3]
    assert between(np.float32([[1, 0]]), others, 1e-4).right.tolist() == [2]


def test_one_image_in_two_batches_is_at_zero(tmp_path: Path, photographs: list[Image.Image]) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 64, 7, stride=2), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 5, stride=2),
        torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
    )  # fmt: skip
    torch.jit.trace(network, torch.zeros(1, 3, 64, 64)).save(tmp_path / "a.pt")
    model = load(f"{tmp_path / 'a.pt'}?size=64")
    left, right = embed(photographs, model, 12), embed(photographs[::-1], model, 5)[::-1]
    found = between(left, right, 0)
    assert {*zip(found.left.tolist(), found.right.tolist(), strict=True)} == {(i, i) for i in range(12)}
    assert not found.distance.any()
    slightly = unit(left + 1e-4 * np.roll(left, 1, axis=1))  # the control: another image is not at zero
    assert not len(between(left, slightly, 0).left)


def test_parts_and_memory_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "CHUNK", 70)
    random = np.random.default_rng(0)
    rows = unit(np.repeat(random.standard_normal((20, 16)), 5, axis=0) + 0.1 * random.standard_normal((100, 16)))
    np.save(tmp_path / "rows.npy", rows)
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    check_pairs(within(mapped, 0.1), cosine(rows, rows), 0.1, upper=True)


def test_empty() -> None:
    none, some = np.empty((0, 4), np.float32), unit(np.ones((3, 4)))
    for found in (within(none, 0.1), between(none, some, 0.1), between(some, none, 0.1), within(0 * some, 2)):
        assert [len(part) for part in found] == [0, 0, 0]
        assert [part.dtype for part in found] == [np.int64, np.int64, np.float32]
    assert len(within(some[:1], 2).left) == 0


@pytest.mark.parametrize("limit", [-0.1, 2.1, float("nan")])
def test_limit_out_of_range(limit: float) -> None:
    with pytest.raises(UserError, match=r"must be 0 to 2 \(cosine distance\), got"):
        within(unit(np.ones((3, 4))), limit)


@pytest.mark.parametrize(("row", "length"), [([3, 4], "5"), ([0.5, 0], "0.5"), ([np.nan, 0], "nan")])
def test_rows_of_other_lengths(row: list[float], length: str) -> None:
    rows = np.float32([[1, 0], row])
    with pytest.raises(ValueError, match=f"left must have rows of length 1 or 0, got {length}"):
        within(rows, 0.1)
