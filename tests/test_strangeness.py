"""export.strangeness: scores are those of the papers, by plain numpy, and what is far away scores higher."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp, softmax
from scipy.stats import entropy
from torch import Tensor

from export import strangeness
from export.graph import Answering, CalibratedGraph
from export.onnx import write
from export.strangeness import FITS, NEIGHBOURS, PRINCIPAL_SHARE, SCORES, Seen, last_layer
from models import MODELS
from models.datasets import DATASETS
from models.network import Network
from service import calibration
from service.documents import OodMethod

DIMENSIONS, CLASSES = 24, 10
Doubles = npt.NDArray[np.float64]


class Linear(Network):
    """Features are the pixels' means; the last layer is as given."""

    def __init__(self, weights: Doubles, biases: Doubles) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(*weights.T.shape)
        with torch.no_grad():
            self.layer.weight.copy_(torch.from_numpy(weights))
            self.layer.bias.copy_(torch.from_numpy(biases))

    def features(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, : self.layer.in_features]

    def classify(self, features: Tensor) -> Tensor:
        found: Tensor = self.layer(features)
        return found


def network(dimensions: int = DIMENSIONS) -> Linear:
    rng = np.random.default_rng(5)
    return Linear(rng.normal(size=(CLASSES, dimensions)), rng.normal(size=CLASSES))


def seen(n: int, seed: int = 0, dimensions: int = DIMENSIONS, off: float = 0.0) -> Seen:
    """Features mostly in a space of six dimensions, shifted, and what the network makes of them."""
    rng, space = np.random.default_rng(seed), np.random.default_rng(1).normal(size=(6, dimensions))
    features = rng.normal(size=(n, 6)) @ space + 0.3 * rng.normal(size=(n, dimensions)) + 1
    features += off * rng.normal(size=(n, dimensions))
    net = network(dimensions)
    weights, biases = net.layer.weight.detach().double().numpy(), net.layer.bias.detach().double().numpy()
    narrow = features.astype(np.float32)
    return Seen(narrow, (narrow @ weights.T + biases).astype(np.float32))


def score(method: str, of: Seen, params: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    tensors = {name: torch.from_numpy(array) for name, array in params.items()}
    found = SCORES[method](torch.from_numpy(of.features), torch.from_numpy(of.logits), tensors)
    return np.asarray(found.numpy())


def test_the_energy_is_that_of_the_service() -> None:
    """Minus the logarithm of the sum of exponentials, also where they overflow."""
    logits = np.random.default_rng(0).normal(size=(100, CLASSES)).astype(np.float32) * 30
    logits[0, 0] = 500
    found = score("energy", Seen(np.zeros((100, 1), np.float32), logits), {})
    np.testing.assert_allclose(found, calibration.energy(logits.astype(np.float64)), rtol=1e-6, atol=1e-5)
    assert found.shape == (100,)


def wang(net: Linear, training: Seen, of: Seen) -> tuple[Doubles, float, Doubles]:
    """Residual norms of `of`, alpha, and virtual logits, as Wang et al. 2022 have them: equations 4 to 6."""
    weights, biases = net.layer.weight.detach().double().numpy(), net.layer.bias.detach().double().numpy()
    origin = -np.linalg.pinv(weights) @ biases
    x = training.features.astype(np.float64) - origin
    values, vectors = np.linalg.eig(x.T @ x / len(x))
    order = np.argsort(-values)
    held = 0
    while values[order[:held]].sum() < PRINCIPAL_SHARE * values.sum():
        held += 1
    principal = vectors[:, order[:held]]

    def residual(features: npt.NDArray[np.float32]) -> Doubles:
        centred = features.astype(np.float64) - origin
        return np.asarray(np.linalg.norm(centred - centred @ principal @ principal.T, axis=1))

    alpha = training.logits.max(1).mean() / residual(training.features).mean()
    return residual(of.features), float(alpha), alpha * residual(of.features)


def test_vim_is_that_of_the_paper() -> None:
    """The scale is its alpha; what lies off the principal space is the residual's norm; the score is their product
    and the energy.
    """
    training, of = seen(800), seen(60, seed=2)
    params = FITS["vim"](network(), training)
    norms, alpha, virtual = wang(network(), training, of)
    assert params["vim_scale"] == pytest.approx(alpha, rel=1e-4)
    off = (of.features - params["vim_origin"]) @ params["vim_residual"]
    np.testing.assert_allclose(np.linalg.norm(off, axis=1), norms, rtol=1e-4)
    expected = virtual + calibration.energy(of.logits.astype(np.float64))
    np.testing.assert_allclose(score("vim", of, params), expected, rtol=1e-4, atol=1e-3)


@given(st.integers(0, 2**32), st.floats(-50, 50))
def test_kl_uniform_is_the_divergence_from_even_probabilities(seed: int, added: float) -> None:
    """By scipy, but for the number of classes; greatest where all are alike, and whatever is added to all logits."""
    logits = np.random.default_rng(seed).normal(scale=4, size=(20, CLASSES)).astype(np.float32)
    found = score("kl_uniform", Seen(np.zeros((20, 1), np.float32), logits), {})
    divergence = entropy(np.full((1, CLASSES), 1 / CLASSES), softmax(logits.astype(np.float64), 1), axis=1)
    np.testing.assert_allclose(found, -divergence - np.log(CLASSES), rtol=1e-5, atol=1e-5)
    lifted = Seen(np.zeros((20, 1), np.float32), logits + np.float32(added))
    np.testing.assert_allclose(score("kl_uniform", lifted, {}), found, atol=1e-4)
    even = Seen(np.zeros((1, 1), np.float32), np.zeros((1, CLASSES), np.float32))
    assert score("kl_uniform", even, {})[0] == pytest.approx(-np.log(CLASSES), abs=1e-6)


def test_vim_orders_images_as_the_virtual_probability_does() -> None:
    """The softmax over the logits and the virtual one, of which the paper's score is the last."""
    training, of = seen(800), seen(60, seed=2, off=0.3)
    _, _, virtual = wang(network(), training, of)
    logarithm = virtual - logsumexp(np.column_stack([of.logits, virtual]), axis=1)
    found = score("vim", of, FITS["vim"](network(), training))
    np.testing.assert_array_equal(np.argsort(found), np.argsort(logarithm))


def test_the_residual_space_is_what_is_left_of_the_principal_one() -> None:
    """Of unit length and at right angles; of the variance no more than a twentieth lies in it."""
    training = seen(800)
    params = FITS["vim"](network(), training)
    residual = params["vim_residual"].astype(np.float64)
    np.testing.assert_allclose(residual.T @ residual, np.eye(residual.shape[1]), atol=1e-5)
    centred = training.features - params["vim_origin"]
    shares = ((centred @ residual) ** 2).sum(0) / (centred**2).sum()
    assert shares.sum() <= 1 - PRINCIPAL_SHARE
    everything = np.sort(np.linalg.eigvalsh(centred.T @ centred)) / (centred**2).sum()
    assert everything[: residual.shape[1] + 1].sum() > 1 - PRINCIPAL_SHARE


def test_vim_works_where_the_principal_space_is_everything() -> None:
    """Few features of one size each: one dimension is left over, and the scale is finite."""
    rng, net = np.random.default_rng(0), network(4)
    features = rng.normal(size=(500, 4)).astype(np.float32)
    params = FITS["vim"](net, Seen(features, rng.normal(size=(500, CLASSES)).astype(np.float32)))
    assert params["vim_residual"].shape == (4, 1)
    assert all(np.isfinite(array).all() for array in params.values())


def test_knn_is_the_nearest_by_brute_force() -> None:
    """Minus the greatest cosine to any of the images that were kept."""
    training, of = seen(NEIGHBOURS // 2), seen(40, seed=3)
    found = score("knn", of, FITS["knn"](network(), training))
    for row, strange in zip(of.features.astype(np.float64), found, strict=True):
        cosines = [row @ kept / np.linalg.norm(row) / np.linalg.norm(kept) for kept in training.features.astype(float)]
        assert strange == pytest.approx(-max(cosines), abs=1e-5)


def test_an_image_that_was_kept_is_not_strange_at_all() -> None:
    """Its cosine to itself is 1, whatever its length."""
    training = seen(50)
    doubled = Seen(training.features * 2, training.logits)
    np.testing.assert_allclose(score("knn", doubled, FITS["knn"](network(), training)), -1, atol=1e-5)


def test_so_many_neighbours_are_kept() -> None:
    """Evenly chosen, the first and the last among them; all where there are fewer. Nothing has no direction."""
    many = seen(3 * NEIGHBOURS)
    bank = FITS["knn"](network(), many)["knn_bank"]
    assert bank.shape == (DIMENSIONS, NEIGHBOURS)
    for column, row in ((0, 0), (-1, -1)):
        kept = many.features[row] / np.linalg.norm(many.features[row])
        np.testing.assert_allclose(bank[:, column], kept, atol=1e-6)
    nothing = Seen(np.zeros((3, DIMENSIONS), np.float32), np.zeros((3, CLASSES), np.float32))
    params = FITS["knn"](network(), nothing)
    assert params["knn_bank"].shape == (DIMENSIONS, 3)
    np.testing.assert_array_equal(score("knn", nothing, params), 0)


@pytest.mark.parametrize("method", ["vim", "knn"])
def test_what_is_far_away_is_stranger(method: str) -> None:
    """An outlier off the space of what was seen, though the network is as sure of it as of any."""
    training, of = seen(800), seen(200, seed=4)
    params = FITS[method](network(), training)
    ordinary = score(method, of, params)
    principal = training.features - training.features.mean(0)
    least = np.linalg.svd(principal, full_matrices=True)[2][-1]
    outlier = Seen((100 * least)[None].astype(np.float32), of.logits[:1])
    assert score(method, outlier, params)[0] > ordinary.max()


@pytest.mark.parametrize("method", FITS)
def test_a_fit_is_the_same_again(method: str) -> None:
    """Byte by byte; in float32, as the graph computes."""
    one, other = (FITS[method](network(), seen(300)) for _ in range(2))
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == np.float32
        assert array.tobytes() == other[name].tobytes()


def test_a_last_layer_is_found_by_what_it_does() -> None:
    """Weights (C, D) and biases (C,)."""
    net = network()
    weights, biases = last_layer(net, DIMENSIONS)
    np.testing.assert_allclose(weights, net.layer.weight.detach().numpy(), atol=1e-6)
    np.testing.assert_allclose(biases, net.layer.bias.detach().numpy(), atol=1e-6)


def test_there_is_a_fit_for_each_score() -> None:
    """Under the same name."""
    assert FITS.keys() == SCORES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vim", "knn"])
def test_the_graph_has_the_arrays_by_the_names_of_the_fit(method: OodMethod, tmp_path: Path) -> None:
    """Among the initializers of the ONNX file, and no other of its kind."""
    net = MODELS["digits"].build().eval()
    with torch.inference_mode():
        features = net.features(torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
        params = FITS[method](net, Seen(features.numpy(), net.classify(features).numpy()))
    spec = DATASETS["mnist"].input
    graph = CalibratedGraph(net, spec, Answering("identity", {}, 0.5, method, 0.0, params))
    write(graph, spec, tmp_path / "model.onnx")
    kept = {tensor.name: tensor for tensor in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert {name for name in kept if name.startswith(("vim_", "knn_"))} == params.keys()
    for name, array in params.items():
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept[name]), array)


def test_parameters_are_told_apart_by_their_names() -> None:
    """Each begins with its method's, so that no two methods, nor a calibration, share one."""
    for method, fit in strangeness.FITS.items():
        assert all(name.startswith(f"{method}_") for name in fit(network(), seen(100)))
