"""Training: data in, weights out, interrupted or not."""

import contextlib
import json
import math
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import models
from models import datasets, digit_vgg, evaluate, task, teaching, train
from models.datasets import Dataset, normalise
from models.formats import DataError
from models.letters import letters
from models.muon import orthogonalise
from models.recipe import Schedule, Strangers
from models.teaching import Plan
from models.whitened_resnet import ResidualBlock
from models.whitened_vgg import WhitenedVGG, augment, whitening_filters
from service.images import Pixels
from tests.conftest import ROOT, interrupted


def tiny(name: str, directory: Path | None = None) -> Dataset:
    """A stand-in of the right shape: bright squares in ten places."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 60, (1200, 32, 32, 3), np.uint8), np.arange(1200) % 10
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3, 8:24] = 255
    return Dataset(name, images[:1000], labels[:1000], images[1000:], labels[1000:])


def stripes(spec: object) -> Pixels:
    """What is in none of the stand-in's classes: upright bars, and no noise."""
    images = np.zeros((60, 32, 32, 3), np.uint8)
    for place, image in enumerate(images):
        image[:, place % 30 : place % 30 + 3] = 255
    return images


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The CIFAR-10 recipe on the stand-in data, writing to tmp_path."""
    source = replace(datasets.DATASETS["cifar10"], n_train=1000, held_back=100)
    monkeypatch.setitem(datasets.DATASETS, "cifar10", source)
    monkeypatch.setattr(task, "load", tiny)
    recipe = replace(models.MODELS["digits"], dataset="cifar10", batch_size=100, epochs=3)
    monkeypatch.setitem(models.MODELS, "digits", recipe)
    monkeypatch.setattr(train, "weights_path", lambda name: tmp_path / "weights" / f"{name}.pt")
    monkeypatch.setattr(train, "record_path", lambda name, seed: tmp_path / "weights" / "seeds" / f"{name}-{seed}.json")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(directory: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(directory / "weights" / "digits.pt", weights_only=True)
    return loaded


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_weights_of_an_uninterrupted_one(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its second epoch and started again, training arrives at exactly the same place."""
    train.train("digits", Plan(epochs=3, seed=3))
    expected = weights(small)
    (small / "weights" / "digits.pt").unlink()
    for checkpoint in (small / "runs").rglob("*.pt"):
        checkpoint.unlink()

    interrupted(monkeypatch, teaching, "_epoch", at=2)
    with pytest.raises(KeyboardInterrupt):
        train.train("digits", Plan(epochs=3, seed=3))
    train.train("digits", Plan(epochs=3, seed=3))
    for name, value in weights(small).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow
def test_training_learns_and_records_how(small: Path) -> None:
    """The loss falls, the stand-in is learnt, and the record tells command, seed and figures."""
    train.train("digits", Plan(epochs=5))
    record = json.loads((small / "weights" / "digits.json").read_text())
    assert record["test"]["accuracy"] > 0.9
    assert record["history"][-1]["loss"] < record["history"][0]["loss"]
    assert record["command"] == "python -m models.train digits --seed 0 --epochs 5"
    assert record["splits"].keys() == {"train", "fit", "conformal"}


@pytest.mark.slow
def test_weights_of_16_bits_are_those_that_were_measured(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters take half the space, and the record's figures are of what is in the file."""
    train.train("digits", Plan(epochs=1))
    whole = weights(small)
    monkeypatch.setitem(models.MODELS, "digits", replace(models.MODELS["digits"], half=True))
    train.train("digits", Plan(epochs=1))
    halved = weights(small)
    for name, value in whole.items():
        assert halved[name].dtype == (torch.float16 if value.ndim == 4 else value.dtype)
        assert torch.allclose(halved[name].to(value.dtype), value, rtol=1e-3, atol=1e-6)
    net = models.MODELS["digits"].build()
    net.load_state_dict(halved)
    test = task.zoo("digits").images("test")
    record = json.loads((small / "weights" / "digits.json").read_text())
    found = evaluate.score(net, test.images, test.labels, torch.device("cpu"))
    assert found.accuracy == record["test"]["accuracy"]
    assert found.nll == pytest.approx(record["test"]["nll"], rel=1e-7)


@pytest.mark.slow
def test_a_terminal_shows_how_far_it_is(tmp_path: Path) -> None:
    """A bar of all the run's batches with the time left, the loss of this epoch and the accuracy after the last."""
    import os
    import pty
    import termios

    ours, theirs = pty.openpty()
    # A terminal of no width gets no bar.
    termios.tcsetwinsize(theirs, (24, 120))
    settings = os.environ | {"PYTHONPATH": str(ROOT), "TQDM_MININTERVAL": "0", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.lesson"], cwd=tmp_path, env=settings, stdout=subprocess.DEVNULL, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        # Linux ends a terminal that nobody writes to any more with an error.
        with contextlib.suppress(OSError):
            while read := os.read(ours, 65536):
                shown += read
        os.close(ours)
    assert process.returncode == 0
    bars = re.findall(r"epoch (\d)/3: +\d+%\|[^|]*\| (\d+)/12 \[\d\d:\d\d<([?:\d]+), ([^]]*)\]", shown.decode())
    steps = [int(step) for _, step, _, _ in bars]
    assert steps == sorted(steps)
    assert set(range(1, 12)) <= set(steps)
    assert any(left == "00:00" for _, _, left, _ in bars)
    figures = next(figures for epoch, step, _, figures in bars if (epoch, step) == ("3", "11"))
    assert re.search(r"loss=\d\.\d{3}, accuracy=0\.\d{4}$", figures)


@pytest.mark.slow
def test_one_more_seed_leaves_the_weights_alone(small: Path) -> None:
    """Its record goes where those of further seeds are, and tells the same as one with weights would."""
    train.train("digits", Plan(epochs=1))
    kept = {path: path.read_bytes() for path in (small / "weights").iterdir()}
    train.train("digits", Plan(epochs=1, seed=4), record_only=True)
    assert {path: path.read_bytes() for path in (small / "weights").iterdir() if path.is_file()} == kept
    record = json.loads((small / "weights" / "seeds" / "digits-4.json").read_text())
    assert record["command"] == "python -m models.train digits --record-only --seed 4 --epochs 1"
    assert record.keys() == json.loads((small / "weights" / "digits.json").read_text()).keys()
    (small / "weights" / "seeds" / "digits-4.json").unlink()
    train.train("digits", Plan(epochs=1, seed=4))
    again = json.loads((small / "weights" / "digits.json").read_text())
    assert (again["seed"], again["test"]) == (4, record["test"])


@pytest.mark.slow
def test_an_unknown_network_is_refused_with_the_known_ones() -> None:
    """The command line names what there is."""
    command = [sys.executable, "-m", "models.train", "nothing"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "digits" in ended.stderr


@pytest.mark.slow
def test_missing_data_is_told_in_one_line(tmp_path: Path) -> None:
    """Without the data there is no traceback, but what is missing and how to get it."""
    import os

    command = [sys.executable, "-m", "models.train", "digits"]
    settings = os.environ | {"DATA_DIR": str(tmp_path / "none")}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=settings)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert str(tmp_path / "none") in ended.stderr


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named(small: Path) -> None:
    """A checkpoint that cannot be read is not started over silently: it may be a week's work."""
    path = small / "runs" / "digits" / "seed0-epochs3.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut off")
    with pytest.raises(DataError, match="delete it to start again"):
        train.train("digits", Plan(epochs=3))


@pytest.mark.slow
def test_ctrl_c_ends_training_with_how_to_go_on(tmp_path: Path) -> None:
    """Interrupted from the keyboard, it says how to resume and exits with 130."""
    code = (
        "import sys, models.train as t\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "t.train = stop\n"
        "sys.exit(t.main(['digits']))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 128 + signal.SIGINT
    assert "resume" in ended.stderr


@pytest.mark.slow
def test_whitening_makes_patches_uncorrelated() -> None:
    """The first half of the filters turns natural patches into channels of unit variance without correlation."""
    generator = torch.Generator().manual_seed(0)
    images = nn.functional.avg_pool2d(torch.randn(200, 3, 34, 34, generator=generator), 3, 1)
    filters = whitening_filters(images)
    assert filters.shape == (24, 3, 2, 2)
    assert torch.equal(filters[:12], -filters[12:])
    answers = nn.functional.conv2d(images, filters[:12]).permute(1, 0, 2, 3).flatten(1)
    covariance = answers @ answers.T / answers.shape[1]
    assert torch.allclose(covariance, torch.eye(12), atol=0.05)


def test_augmentation_mirrors_every_image_every_second_epoch() -> None:
    """Of two consecutive epochs, an image is mirrored in exactly one; shifts aside, its pixels are its own."""
    images = torch.zeros(8, 3, 32, 32)
    images[:, :, 14:18, :8] = 1.0  # on the left
    order = torch.arange(8)
    sides = []
    for epoch in (0, 1):
        shifted = augment(images, epoch, order, torch.Generator().manual_seed(0))
        assert shifted.shape == images.shape
        sides.append(shifted[..., :16].sum((1, 2, 3)) > shifted[..., 16:].sum((1, 2, 3)))
    assert torch.equal(sides[0], ~sides[1])
    assert 0 < int(sides[0].sum()) < 8


def test_orthogonalise_keeps_directions_and_evens_sizes() -> None:
    """Singular vectors stay, singular values come near one (Newton-Schulz with five steps)."""
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrix, steps=5)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    core = left.T @ result @ right.T
    assert torch.allclose(core, torch.diag(core.diagonal()), atol=1e-3)
    assert ((core.diagonal() > 0.6) & (core.diagonal() < 1.3)).all()
    assert torch.allclose(orthogonalise(matrix.T, steps=5), result.T, atol=1e-4)


@pytest.mark.slow
def test_strangers_are_answered_evenly(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What belongs to no class and is mixed into the batches ends near an even answer; without, it does not."""

    def evenness(strangers: Strangers | None) -> float:
        monkeypatch.setitem(models.MODELS, "digits", replace(models.MODELS["digits"], strangers=strangers))
        train.train("digits", Plan(epochs=6))
        net = models.MODELS["digits"].build()
        net.load_state_dict(weights(small))
        logits = evaluate.logits(net, normalise("cifar10", stripes(None)), torch.device("cpu"))
        for written in (small / "runs").rglob("*.pt"):
            written.unlink()
        return logits.log_softmax(1).mean().item()

    even = -math.log(10)
    assert evenness(Strangers(stripes, digit_vgg.wildly, per_batch=30, weight=1)) > even - 0.1
    assert evenness(None) < even - 0.5


def test_letters_are_fed_as_digits_are() -> None:
    """Of nearly every font and alphabet, light on dark in MNIST's frame, no two alike by much."""
    drawn = letters(datasets.DATASETS["mnist"].input)
    assert len(drawn) >= 500
    assert drawn.shape[1:] == (32, 32, 3)
    assert drawn.dtype == np.uint8
    assert (drawn[:, :2].max(), drawn[:, :, :2].max()) == (0, 0)
    assert drawn.max(axis=(1, 2, 3)).min() > 200
    assert len(np.unique(drawn.reshape(len(drawn), -1), axis=0)) > 0.95 * len(drawn)


def test_a_digit_drawn_anew_is_another_drawing_of_it() -> None:
    """Same shape, grey, ink neither lost nor made; another each time, the same for the same generator."""
    field = np.zeros((40, 32, 32, 3), np.uint8)
    field[:, 8:24, 14:18] = 255
    images = normalise("mnist", field)
    paper = images.min()
    once, again, other = (digit_vgg.augment(images, 0, torch.arange(40), seeded(seed)) for seed in (0, 0, 1))
    assert once.shape == images.shape
    assert torch.equal(once, again)
    assert not torch.allclose(once, other)
    assert torch.equal(once[:, 0], once[:, 2])
    ink = (once - paper).sum((1, 2, 3)) / (images - paper).sum((1, 2, 3))
    assert 0.5 < ink.min() < ink.max() < 2.5
    assert len(np.unique(once.numpy().round(3), axis=0)) == 40


def test_at_last_a_digit_is_drawn_nearly_as_it_was_scanned() -> None:
    """Neither as wild as before nor untouched; strangers stay as wild as they were."""
    field = np.zeros((40, 32, 32, 3), np.uint8)
    field[:, 8:24, 14:18] = 255
    images = normalise("mnist", field)

    def apart(epoch: int) -> float:
        drawn = digit_vgg.augment(images, epoch, torch.arange(40), seeded(0))
        return (drawn - images).abs().mean().item()

    assert 0 < apart(digit_vgg.CALM_FROM) < apart(digit_vgg.CALM_FROM - 1) / 2
    strangers = models.MODELS["digits"].strangers
    assert strangers is not None
    first, last = (strangers.augment(images, epoch, torch.arange(40), seeded(0)) for epoch in (0, digit_vgg.CALM_FROM))
    assert torch.equal(first, last)


def test_the_digit_network_has_the_shapes_its_docstring_says() -> None:
    """(N, 3, 32, 32) gives (N, 10) by way of 28, 14, 7 and 3 pixels, with 165,010 parameters."""
    net, sides = digit_vgg.DigitVGG(), []
    for layer in net.blocks:
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            layer.register_forward_hook(lambda module, given, made: sides.append(made.shape[-1]))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [28, 14, 14, 14, 7, 7, 7, 3]
    assert sum(parameter.numel() for parameter in net.parameters()) == 165_010


@pytest.mark.slow
def test_the_learning_rates_end_at_zero() -> None:
    """Every schedule of every recipe reaches zero at the last step, or earlier."""
    for recipe in models.MODELS.values():
        schedule = Schedule(recipe.epochs, 10, recipe.batch_size)
        for optimizer, rate in recipe.optimizers(recipe.build(), schedule):
            first = max(group["lr"] for group in optimizer.param_groups)
            for _ in range(schedule.total_steps - 1):
                optimizer.step()
                rate.step()
            assert all(group["lr"] <= 0.02 * max(first, 1) for group in optimizer.param_groups)


def test_the_network_of_two_looks_has_the_shapes_its_docstring_says() -> None:
    """(N, 3, 32, 32) gives (N, 10) by way of 31, 15, 7 and 3 pixels; twice, when it is trained."""
    net, sides = WhitenedVGG(), []
    for layer in (net.whiten, *net.blocks):
        layer.register_forward_hook(lambda module, given, made: sides.append(made.shape[-1]))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert sides == [31, 15, 7, 3]
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    # Image and mirror image go as one batch.
    assert sides == [31, 15, 7, 3] * 2


@torch.inference_mode()
def test_a_residual_block_adds_what_it_skips() -> None:
    """With the last convolution silenced, the block is its own first half, passed on."""
    block, images = ResidualBlock(24, 32).eval(), torch.rand(2, 24, 31, 31)
    block.conv3.weight.zero_()
    first = block.block
    start = torch.relu(first.norm1(first.pool(first.conv1(images))))
    assert block(images).shape == (2, 32, 15, 15)
    assert torch.allclose(block(images), start, atol=1e-6)


@torch.inference_mode()
def test_the_network_of_two_looks_sees_an_image_and_its_mirror_image_alike() -> None:
    """The features are the mean of both; no other turn of the image has the same."""
    net, images = WhitenedVGG().eval(), torch.rand(3, 3, 32, 32)
    one, other = (net._features(seen) for seen in (images, images.flip(3)))
    assert torch.allclose(net.features(images), (one + other) / 2, atol=1e-6)
    assert torch.allclose(net.features(images), net.features(images.flip(3)), atol=1e-6)
    assert not torch.allclose(net.features(images), net.features(images.flip(2)), atol=1e-3)
