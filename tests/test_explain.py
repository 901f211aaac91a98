"""models.explain: activation maps that sum to the logit, whatever the network; and the command line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models import MODELS, explain
from models.datasets import DATASETS
from models.explain import activation, main
from models.lenet5 import LeNet5
from models.network import Network
from models.whitened_vgg import HEAD_SCALE, WhitenedVGG
from service.activation import ActivationMaps
from service.images import InputSpec, Pixels
from tests.conftest import FIXTURES
from tests.test_occlusion import spec_of

SPEC = spec_of(32, 32)


class Small(Network):
    """Two convolutions, the second with a shortcut beside it; then an end of its own."""

    def __init__(self, end: nn.Module, width: int, head: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Conv2d(8, 8, 3, 2, 1)
        self.shortcut = nn.Conv2d(8, 8, 1, 2)
        self.activation = nn.ReLU()
        self.end = nn.Sequential(end, nn.Flatten())
        self.head = head or nn.Linear(width, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.end(self.activation(self.second(x) + self.shortcut(x)))

    def classify(self, features: Tensor) -> Tensor:
        return self.head(features)


class Cropped(Network):
    """Sees the middle of the image only, in grey; ends in a convolution over all that is left."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, 5, padding=2, bias=False)
        self.pool = nn.MaxPool2d(7)
        self.last = nn.Conv2d(6, 5, 3, padding=1, stride=4)

    def features(self, x: Tensor) -> Tensor:
        return self.pool(self.first(x.mean(1, keepdim=True)[..., 2:-2, 2:-2])).flatten(1)

    def classify(self, features: Tensor) -> Tensor:
        return self.last(features.view(-1, 6, 4, 4)[..., :3, :3]).flatten(1)


class Folded(WhitenedVGG):
    """Takes both looks in one pass."""

    def features(self, x: Tensor) -> Tensor:
        seen = self._features(torch.cat((x, x.flip(3))))
        return seen.view(2, -1, seen.shape[1]).mean(0)


NETWORKS: dict[str, Callable[[], Network]] = {
    "mean": lambda: Small(nn.AdaptiveAvgPool2d(1), 8),
    "maximum": lambda: Small(nn.MaxPool2d(8), 8),
    "maxima": lambda: Small(nn.MaxPool2d(3, 2, 1), 8 * 16),
    "means": lambda: Small(nn.AvgPool2d(4), 8 * 4),
    "no pooling": lambda: Small(nn.Dropout(), 8 * 64),
    "two looks": WhitenedVGG,
    "two looks at once": Folded,
}


def made(name: str, seed: int) -> Network:
    """Of random weights, whose layers are neither dead nor all the same."""
    torch.manual_seed(seed)
    net = NETWORKS[name]()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.5)
    return net.eval()


def picture(seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)


def bias_of(net: Network, index: int) -> float:
    assert isinstance(net, Small | WhitenedVGG)
    bias = dict(net.head.named_parameters()).get("bias")
    return 0.0 if bias is None else bias[index].item()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_map_sums_to_the_logit_less_the_bias(name: str, seed: int) -> None:
    """For every way to end, every class, and weights by chance."""
    net = made(name, seed)
    with torch.inference_mode():
        logits = net(explain.standardised(SPEC, picture(seed)[None]))[0]
    for index in (0, 3):
        found = activation(net, SPEC, picture(seed), index)
        assert found is not None
        assert found.method == "cam"
        assert found.logit == pytest.approx(logits[index].item(), abs=1e-5)
        assert found.rest == pytest.approx(bias_of(net, index), abs=1e-4)
        assert found.heat.values.sum() == pytest.approx(logits[index].item() - bias_of(net, index), abs=1e-4)


def test_the_map_of_two_looks_is_the_heads_weight_where_each_maximum_was() -> None:
    """By plain computation: both looks' features, times their weights, where they were found, and their mean."""
    net = made("two looks", 5)
    assert isinstance(net, WhitenedVGG)
    x = explain.standardised(SPEC, picture(5)[None])
    total = 0.0
    with torch.inference_mode():
        for look in (x, x.flip(3)):
            features = net.blocks(net.activation(net.whiten(look)))[0].flatten(1).amax(1)
            total += HEAD_SCALE * (features @ net.head.weight[2]).item() / 2
    found = activation(net, SPEC, picture(5), 2)
    assert found is not None
    assert found.heat.values.sum() == pytest.approx(total, abs=1e-5)
    turned = activation(net, SPEC, np.ascontiguousarray(picture(5)[:, ::-1]), 2)
    assert turned is not None
    assert turned.heat.values == pytest.approx(found.heat.values[:, ::-1], abs=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["maxima", "means", "two looks at once"])
def test_the_map_is_that_of_the_exported_graph(name: str, tmp_path: Path) -> None:
    """Two ways to the same: PyTorch's gradient and the rules of service.linear."""
    net = made(name, 1)
    content = exported(net, SPEC, tmp_path / "model.onnx")
    maps = ActivationMaps(content, SPEC)
    for index in (0, 4):
        found, expected = maps.of(picture(7), index), activation(net, SPEC, picture(7), index)
        assert expected is not None
        assert found.logit == pytest.approx(expected.logit, abs=1e-4)
        assert found.rest == pytest.approx(expected.rest, abs=1e-4)
        most = np.abs(expected.heat.values).max()
        assert found.heat.values == pytest.approx(expected.heat.values, abs=1e-3 * most)


def exported(net: Network, spec: InputSpec, path: Path) -> bytes:
    """As ONNX, pixels to logits."""

    class Standardising(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixels: Tensor) -> Tensor:
            mean, std = (255 * torch.tensor(values).view(1, 3, 1, 1) for values in (spec.mean, spec.std))
            return self.net((pixels.permute(0, 3, 1, 2).float() - mean) / std)

    program = torch.onnx.export(
        Standardising().eval(),
        (torch.zeros((2, 32, 32, 3), dtype=torch.uint8),),
        dynamo=True,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}},
        opset_version=20,
        verbose=False,
    )
    assert program is not None
    onnx.save(program.model_proto, path)
    return path.read_bytes()


def perceptron() -> Network:
    """Ends in pooling, and then in two linear layers."""
    return Small(nn.MaxPool2d(8), 8, nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 5)))


@pytest.mark.parametrize("build", [LeNet5, perceptron])
def test_a_network_of_several_linear_layers_is_explained_by_occlusion(build: Callable[[], Network]) -> None:
    """And its map is what the class's probability loses, by whoever answers."""
    torch.manual_seed(0)
    net = build().eval()
    assert activation(net, SPEC, picture(1), 0) is None
    found = explain.explain(net, SPEC, picture(1), 0)
    assert (found.method, found.logit, found.rest) == ("occlusion", None, None)
    asked: list[int] = []

    def answer(images: Pixels) -> npt.NDArray[np.float64]:
        asked.append(len(images))
        return np.where((images[:, 20, 9] == picture(1)[20, 9]).all(-1), 0.9, 0.2)[:, None]

    found = explain.explain(net, SPEC, picture(1), 0, answer)
    assert asked == [1, 64]
    row, column = np.unravel_index(found.heat.values.argmax(), (32, 32))
    assert abs(row - 20) <= 4
    assert abs(column - 9) <= 4


def test_places_of_a_cropped_image_lie_where_they_are() -> None:
    """A lone spot is found where it is, though the network sees but the middle of the image."""
    torch.manual_seed(0)
    net, black_is_none = Cropped().eval(), InputSpec("photo", 32, 32, (0.0,) * 3, (0.2,) * 3)
    black, spot = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    spot[12, 12] = 255
    one, other = (activation(net, black_is_none, image, 0) for image in (black, spot))
    assert one is not None
    assert other is not None
    assert not one.heat.values.any()
    rows, columns = np.nonzero(other.heat.values)
    # No further than a filter of 5 × 5 reaches.
    assert {*rows.tolist(), *columns.tolist()} <= set(range(10, 15))
    assert len(rows) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [("digits", "00000-7"), ("cifar10", "00000-cat")])
def test_the_command_writes_pictures(name: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The map over the image, the filters and a picture for each convolution, and nothing half-written."""
    image = str(FIXTURES / name / f"{file}.png")
    assert main([name, image, "--out", str(tmp_path / "made" / "here")]) == 0
    written = {path.name for path in (tmp_path / "made" / "here").iterdir()}
    convolutions = sum(isinstance(module, nn.Conv2d) for module in MODELS[name].build().modules())
    assert written == {"map.png", "filters.png", *(f"stage-{k + 1}.png" for k in range(convolutions))}
    for path in written:
        with Image.open(tmp_path / "made" / "here" / path) as found:
            found.load()
    told = capsys.readouterr().out
    assert told.startswith(f"{file.partition('-')[2]}: probability ")
    assert told.count("wrote ") == len(written)


@pytest.mark.slow
def test_the_command_explains_the_class_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Be it the wrong one."""
    image = str(FIXTURES / "cifar10" / "00000-cat.png")
    pictures = []
    for label in ("cat", "truck"):
        assert main(["cifar10", image, "--class", label, "--out", str(tmp_path)]) == 0
        assert capsys.readouterr().out.startswith(f"{label}: ")
        pictures.append((tmp_path / "map.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missing or no image, a class that there is not, weights that are none: one line, and status 1."""
    image = str(FIXTURES / "digits" / "00000-7.png")
    text = tmp_path / "text.png"
    text.write_text("a picture of a seven")
    monkeypatch.setattr(explain, "weights_path", lambda name: tmp_path / f"{name}.pt")
    labels = ", ".join(DATASETS[MODELS["digits"].dataset].labels)
    for arguments, reason in (
        ([str(tmp_path / "missing.png")], "missing.png"),
        ([str(text)], "text.png: This is not an image that can be read here"),
        ([image, "--class", "A"], f"digits knows no class 'A'; there are {labels}"),
        ([image], "there is no"),
    ):
        assert main(["digits", *arguments, "--out", str(tmp_path / "out")]) == 1
        told = capsys.readouterr().err
        assert told.startswith("models.explain: ")
        assert reason in told
        assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()
