"""The zoo: what each network is, what it looks at, and how good its committed weights are."""

import json
import re
import sys
from statistics import mean

import pytest
import torch

from models import MODELS, weights_path
from models.datasets import DATASETS, load, normalise, pixels
from models.evaluate import score
from models.networks import load_network
from models.records import runs
from models.summary import macs, parameters
from tests.conftest import data_dir

# Of the mean over seeds, on the test set.
TARGETS = {"lenet5": 0.99, "simple_cnn": 0.992, "threes_or_sevens": 0.995, "cifar_cnn": 0.78, "cs231n_smallest": 0.6}
# What looks at a digit as MNIST has it, in one channel of 28 × 28 pixels.
GREY = ("simple_cnn", "threes_or_sevens")


@pytest.mark.parametrize("name", MODELS)
def test_a_network_answers_with_its_data_sets_classes(name: str) -> None:
    """(N, 3, H, W) of its data set gives (N, D) of features and (N, classes) of logits, also of one image."""
    source, net = DATASETS[MODELS[name].dataset], MODELS[name].build().eval()
    images = torch.rand(2, 3, source.input.height, source.input.width)
    with torch.inference_mode():
        assert net.features(images).ndim == 2
        assert net(images).shape == (2, len(source.labels))
        assert torch.allclose(net(images[:1]), net(images)[:1], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_docstring_tells_the_multiply_adds(name: str) -> None:
    """One of the numbers of millions in it is what is served, to a hundredth of it or its last digit."""
    count = macs(MODELS[name].build()) / 1e6
    told = re.findall(r"(\d+(?:\.(\d+))?) million\s+multiply-adds( for each of two looks)?", documentation(name))
    assert any(
        abs(float(value) * (2 if twice else 1) - count) <= max(count / 100, 0.5 / 10 ** len(digits))
        for value, digits, twice in told
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_docstring_names_its_source(name: str) -> None:
    """By its year, and has the layers as a table."""
    assert re.search(r"\b(19|20)\d\d\b", documentation(name))
    assert "\n| --- | --- |" in documentation(name)


def documentation(name: str) -> str:
    """Of the module that knows how many parameters this network has."""
    count = parameters(MODELS[name].build())
    written = [module.__doc__ or "" for called, module in sys.modules.items() if called.startswith("models.")]
    return next(text for text in written if re.search(rf"\s{count:,} parameters", text))


@pytest.mark.parametrize("name", GREY)
@torch.inference_mode()
def test_a_grey_network_sees_the_first_channel_of_what_mnist_has(name: str) -> None:
    """The frame of two pixels and the other channels change nothing; each pixel within does."""
    net, images = MODELS[name].build().eval(), torch.rand(2, 3, 32, 32)
    other = torch.rand(2, 3, 32, 32)
    other[:, 0, 2:-2, 2:-2] = images[:, 0, 2:-2, 2:-2]
    assert torch.equal(net(images), net(other))
    for row, column in ((2, 2), (2, 29), (29, 2), (29, 29), (15, 15)):
        images[:, 0, row, column] = torch.nan
        assert net(images).isnan().any()
        images[:, 0, row, column] = 0


@pytest.mark.parametrize("name", TARGETS)
def test_the_records_reach_the_target(name: str) -> None:
    """The mean accuracy over all seeds, of runs as long as the recipe says, on its data set."""
    records = runs(name)
    assert all(record.epochs == MODELS[name].epochs for record in records)
    assert all(record.dataset == MODELS[name].dataset for record in records)
    assert mean(record.accuracy for record in records) >= TARGETS[name]


@pytest.mark.slow
@pytest.mark.skipif(data_dir() is None, reason="needs the full data sets in DATA_DIR")
@pytest.mark.parametrize("name", TARGETS)
def test_committed_weights_score_what_their_record_says(name: str) -> None:
    """Over the whole test set, to an image in a thousand at most where another processor rounds otherwise."""
    data = load(MODELS[name].dataset, data_dir())
    images = normalise(data.name, pixels(data.name, data.test_images))
    net = load_network(MODELS[name].build(), weights_path(name))
    found = score(net, images, torch.from_numpy(data.test_labels), torch.device("cpu"))
    told = json.loads(weights_path(name).with_suffix(".json").read_text())["test"]
    assert found.n == told["n"]
    assert found.accuracy == pytest.approx(told["accuracy"], abs=5e-4)
    assert found.nll == pytest.approx(told["nll"], abs=1e-3)
