"""Image models from local files, as functions from RGB images to vectors; nothing is downloaded but by imagededup."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from unmem.component import UserError
from unmem.rundir import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Function = Callable[[list[Image.Image]], Any]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, in RGB
DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
IMAGEDEDUP = {"cnn": "MobilenetV3", "vit": "ViT", "efficientnet": "EfficientNet"}
TORCHSCRIPT = (".pt", ".torchscript")


class Network:
    """A network behind the preprocessing that its images need."""

    def __init__(self, network: Any, prepare: Callable[[Image.Image], torch.Tensor]) -> None:
        """Args: the network, float32 [n, 3, h, w] to [n, d]; and the function that makes [3, h, w] of an image."""
        self.device = device()
        self.network = network.to(self.device).eval()
        self.prepare = prepare

    def __call__(self, images: Sequence[Image.Image]) -> Any:
        """What the network makes of the images."""
        import torch

        batch = torch.stack([self.prepare(image) for image in images])
        with torch.inference_mode():
            return self.network(batch.to(self.device))


class Square:
    """The whole image squeezed to a square, in ImageNet's normalisation."""

    def __init__(self, side: int) -> None:
        """Args: the side in pixels."""
        self.side = side

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """float32 [3, side, side]."""
        import torch

        small = image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, np.float32) / np.float32(255) - MEAN) / DEVIATION
        return torch.from_numpy(pixels).permute(2, 0, 1)


def imported(path: str) -> Function:
    """The callable at ``package.module:name``, found on the path or in the current folder."""
    module, _, name = path.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        function: Function = attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        raise UserError(f"embed {path!r}: cannot be imported ({error})") from None
    if not callable(function):
        raise UserError(f"embed {path!r}: must be a callable, got {type(function).__name__}")
    return function


def torchscript(file: Path, side: int) -> Function:
    """A TorchScript file, such as SSCD's: float32 [n, 3, side, side] in ImageNet's normalisation to [n, d]."""
    import torch

    with _loading(str(file), "must be a TorchScript file, as torch.jit.save writes it"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # new files should be made otherwise; these are as they are
        return Network(torch.jit.load(file, map_location="cpu"), Square(side))


def torchvision(name: str, weights: Path, side: int) -> Function:
    """A torchvision classifier with local weights, up to the input of its last linear layer."""
    import torch
    import torchvision.models

    spec = f"torchvision:{name}:{weights}"
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise UserError(f"embed {spec!r}: torchvision has no classifier {name!r}")
    network = torchvision.models.get_model(name, weights=None)
    heads = [path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)]
    if not heads:
        raise UserError(f"embed {spec!r}: a network that ends in a linear layer is needed")
    network.set_submodule(heads[-1], torch.nn.Identity())
    with _loading(spec, f"the file must hold the state dict of a {name}"):
        state = _state(weights)
        network.load_state_dict({key: state[key] for key in state if not key.startswith(heads[-1] + ".")})
    return Network(network, Square(side))


def folder(path: Path) -> Function:
    """A model folder as transformers' or timm's ``save_pretrained`` writes it, with its own preprocessing."""
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or not {"architecture", "model_type"} & config.keys():
        raise UserError(f"{path / 'config.json'}: needs transformers' 'model_type' or timm's 'architecture'")
    return _timm(path) if "architecture" in config else Transformer(path)


def _timm(path: Path) -> Function:
    """A timm model folder, without its classifier."""
    timm, data = _optional("timm", path), _optional("timm.data", path)
    with _loading(str(path), "must be a folder as timm saves it"):
        network = timm.create_model(f"local-dir:{path}", pretrained=True, num_classes=0)
        prepare = data.create_transform(**data.resolve_model_data_config(network), is_training=False)
    return Network(network, prepare)


class Transformer:
    """A transformers model folder, by its own image processor.

    The vector is CLIP's and SigLIP's image feature; else the pooled output; else, or where the folder holds no
    weights for the pooling, the first token (ViT's and DINO's CLS).
    """

    def __init__(self, path: Path) -> None:
        """Args: the folder.

        Raises:
            UserError: when it cannot be loaded, or lacks weights of the model: they would be random.
        """
        library = _optional("transformers", path)
        with _loading(str(path), "must be a folder as transformers saves it, with config, weights and image processor"):
            self.processor = library.AutoImageProcessor.from_pretrained(path, local_files_only=True)
            network, report = library.AutoModel.from_pretrained(path, local_files_only=True, output_loading_info=True)
        missing = sorted(report["missing_keys"])
        self.pooled = not any("pooler" in key for key in missing)
        if lacking := [key for key in missing if "pooler" not in key]:
            raise UserError(f"embed {str(path)!r}: weights are missing, among them {lacking[0]}")
        self.device = device()
        self.network = network.to(self.device).eval()

    def __call__(self, images: list[Image.Image]) -> Any:
        """float32 [n, d]."""
        import torch

        pixels = self.processor(images=images, return_tensors="pt")["pixel_values"].to(self.device)
        with torch.inference_mode():
            if hasattr(self.network, "get_image_features"):
                out = self.network.get_image_features(pixel_values=pixels)
            else:
                out = self.network(pixel_values=pixels)
            if isinstance(out, torch.Tensor):  # image features, before transformers 5
                return out
            pooled = getattr(out, "pooler_output", None) if self.pooled else None
            return out.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def imagededup(name: str) -> Function:
    """One of imagededup's own CNNs; its weights come from torchvision's cache, or the network."""
    import imagededup.utils.models as models

    if name not in IMAGEDEDUP:
        raise UserError(f"embed 'imagededup:{name}': have {', '.join(IMAGEDEDUP)}")
    cls = getattr(models, IMAGEDEDUP[name])
    with _loading(f"imagededup:{name}", "torchvision must be able to download its weights, or have them in its cache"):
        return Network(cls(), cls.transform)


def device() -> str:
    """Where networks run: a GPU if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _state(file: Path) -> dict[str, Any]:
    """A state dict, bare or under ``state_dict``; no code of the file is run."""
    import safetensors.torch
    import torch

    if file.suffix == ".safetensors":
        return safetensors.torch.load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    weights: dict[str, Any] = state.get("state_dict", state)
    return weights


def _optional(module: str, path: Path) -> Any:
    """A library that is no dependency of ours."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(f"embed {str(path)!r}: run pip install {package} to use it ({error})") from None


@contextmanager
def _loading(spec: str, allowed: str) -> Iterator[None]:
    """Say what is allowed where loading fails; the libraries raise anything from OSError to UnpicklingError."""
    try:
        yield
    except Exception as error:
        reason = (str(error) or type(error).__name__).strip().split("\n")[0]
        raise UserError(f"embed {spec!r}: cannot be loaded ({reason}); {allowed}") from error
