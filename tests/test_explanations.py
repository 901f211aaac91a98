"""service.explanations: `?explain=true`, over a real socket, and what becomes of a network that has no map."""

import asyncio
import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from models import MODELS, weights_path
from models.datasets import DATASETS
from models.explain import explain
from models.networks import load_network
from service import VERSION, binary, bundle
from service.answers import Answers, Options, Row
from service.backends import Backend, onnx
from service.batching import Batcher, Limits
from service.binary import BinaryAnswers
from service.board import Board
from service.cache import AnswerCache
from service.classifier import Classifier
from service.errors import BodyTooLarge, Overloaded
from service.explanations import Explainer
from service.images import Pixels, decode, read_header, to_pixels
from service.openapi import document
from service.pulse import Pulse
from service.question import Question
from service.registry import Registry, ServedModel
from service.requests import Upload
from service.settings import BUNDLES
from service.turns import Turns
from tests.conftest import ROOT, Server, committed, fixtures, serving
from tests.test_answers import outputs
from tests.test_bundle import write_bundle
from tests.test_service import problem

SERVED = sorted(path.name for path in BUNDLES.iterdir() if path.name in MODELS)


def heat(explanation: dict[str, Any]) -> npt.NDArray[np.int64]:
    picture = Image.open(BytesIO(base64.b64decode(explanation["png"], validate=True)))
    assert picture.format == "PNG"
    return np.asarray(picture).astype(np.int64)


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_the_map_of_an_image_is_the_library_s(server: Server, name: str) -> None:
    """The same class, method, numbers and picture, by PyTorch from the weights and by the service from the graph."""
    source = DATASETS[MODELS[name].dataset]
    net = load_network(MODELS[name].build(), weights_path(name))
    served = onnx.load(committed(name), "cpu", 1)
    for file, _ in fixtures(name)[:4]:
        answer = server.post(name, file, query="?explain=true&logits=true").json()
        told = answer["explanation"]
        best = answer["predictions"][0]
        assert told["class"] == best["label"]
        pixels = to_pixels(decode(read_header(file, 10_000)), source.input)
        expected = explain(
            net, source.input, pixels, best["class_index"], lambda images: served.forward(images).probabilities
        )
        assert told["method"] == expected.method
        most = np.abs(expected.heat.values).max()
        assert told["min"] == pytest.approx(expected.heat.values.min(), abs=1e-3 * most)
        assert told["max"] == pytest.approx(expected.heat.values.max(), abs=1e-3 * most)
        assert heat(told).shape == (source.input.height, source.input.width, 3)
        assert np.abs(heat(told) - expected.heat.colours).max() <= 2
        if told["method"] == "cam":
            assert told["logit"] == pytest.approx(answer["logits"][best["class_index"]], abs=1e-4)
            assert told["rest"] == pytest.approx(expected.rest, abs=1e-4)
            assert expected.heat.values.sum() + told["rest"] == pytest.approx(told["logit"], abs=1e-4)
        else:
            assert told.keys() == {"method", "class", "png", "min", "max"}
            assert -1 <= told["min"] <= told["max"] <= best["probability"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVED)
def test_whoever_does_not_ask_is_answered_as_ever(server: Server, name: str) -> None:
    """To the byte, on a connection that asked before as well; and an explained answer is the plain one and more."""
    file, _ = fixtures(name)[5]
    url, headers = f"{server.url}/v1/models/{name}/classify", {"content-type": "image/png", "x-request-id": "same"}
    with httpx.Client(headers=headers, timeout=60) as client:
        plain = [client.post(url, content=file).content for _ in range(3)]
        explained = [client.post(f"{url}?explain=true", content=file).json() for _ in range(3)]
        plain += [client.post(f"{url}{query}", content=file).content for query in ("", "?explain=false", "?explain=0")]
    assert len(set(plain)) == 1
    assert b"explanation" not in plain[0]
    assert all(one == explained[0] for one in explained)
    assert explained[0].pop("explanation")["png"]
    shown, expected = explained[0], json.loads(plain[0])
    for one, other in zip(shown.pop("predictions"), expected.pop("predictions"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert shown.pop("ood") == pytest.approx(expected.pop("ood"), abs=1e-4)
    assert shown == expected


@pytest.mark.slow
def test_several_are_explained_each(server: Server) -> None:
    """A file at fault costs no other its explanation, and has none."""
    (one, _), (other, _) = fixtures("digits")[:2]
    url = f"{server.url}/v1/models/digits/classify"
    files = [("file", content) for content in (one, b"no image", other)]
    first, second, third = httpx.post(f"{url}?explain=true", files=files, timeout=60).json()["results"]
    assert second.keys() == {"error"}
    assert second["error"]["status"] == 415
    for result, file in ((first, one), (third, other)):
        alone = server.post("digits", file, query="?explain=true").json()["explanation"]
        assert result["explanation"]["class"] == alone["class"]
        assert np.abs(heat(result["explanation"]) - heat(alone)).max() <= 2


@pytest.mark.slow
def test_tensors_are_explained(server: Server) -> None:
    """A list for a list, one result for one image, in both forms of body."""
    spec = bundle.discover(BUNDLES)["cifar10"].manifest.input
    pixels = np.stack([to_pixels(decode(read_header(file, 10_000)), spec) for file, _ in fixtures("cifar10")[:2]])
    stored = BytesIO()
    np.save(stored, pixels)
    url = f"{server.url}/v1/models/cifar10/classify?explain=true"
    found = httpx.post(url, content=stored.getvalue(), headers={"content-type": "application/x-npy"}, timeout=60).json()
    labels = [result["explanation"]["class"] for result in found["results"]]
    assert labels == [label for _, label in fixtures("cifar10")[:2]]
    headers = {"content-type": "application/octet-stream", "x-tensor-shape": "32,32,3"}
    raw = httpx.post(url, content=pixels[1].tobytes(), headers=headers, timeout=60).json()
    assert np.array_equal(heat(raw["explanation"]), heat(found["results"][1]["explanation"]))


@pytest.mark.slow
def test_what_cannot_be_explained_is_refused(server: Server) -> None:
    """Too many images, an answer that is not JSON, a switch that is none, a file at fault, and a time too short."""
    file, _ = fixtures("digits")[0]
    url = f"{server.url}/v1/models/digits/classify"
    many = httpx.post(f"{url}?explain=true", files=[("file", file)] * 5)
    assert problem(many, 413)["detail"] == "These are 5 images; 4 are explained in one request."
    headers = {"content-type": "image/png", "accept": binary.MEDIA_TYPE.decode()}
    packed = httpx.post(f"{url}?explain=true", content=file, headers=headers)
    assert "accept application/json" in str(problem(packed, 406)["detail"])
    assert "explain is 'yes'" in str(problem(server.post("digits", file, query="?explain=yes"), 422)["detail"])
    problem(server.post("digits", file[:-40], query="?explain=true"), 400)
    hurried = {"content-type": "image/png", "x-request-timeout-ms": "1"}
    photo, _ = fixtures("cifar10")[0]
    late = httpx.post(f"{server.url}/v1/models/cifar10/classify?explain=true", content=photo, headers=hurried)
    assert "in time" in str(problem(late, 503)["detail"])
    assert server.post("digits", file, query="?explain=true").json()["explanation"]["class"] == "7"


@pytest.mark.slow
def test_an_explanation_has_the_documented_members(server: Server) -> None:
    """Those of the example and of the schema, no more and no fewer."""
    file, _ = fixtures("cifar10")[0]
    told = server.post("cifar10", file, query="?explain=true").json()["explanation"]
    (example,) = re.findall(r"```json\n(.*?)```", (ROOT / "docs/explain.md").read_text(), re.S)
    assert list(told) == list(json.loads(example)["explanation"])
    schema = document(VERSION)["components"]["schemas"]["Explanation"]
    assert set(told) == set(schema["properties"])
    assert set(schema["required"]) == set(told) - {"logit", "rest"}


@pytest.mark.slow
def test_explanations_can_be_turned_off_and_bounded(tmp_path: Path) -> None:
    """By the setting: 0 is none, and told so; other requests are answered."""
    file, _ = fixtures("digits")[0]
    settings = {"TRUEODDS_MAX_EXPLAINED": "0", "TRUEODDS_MODELS": "digits", "TRUEODDS_WORKERS": "1"}
    with serving(tmp_path, settings) as server:
        refused = problem(server.post("digits", file, query="?explain=true"), 422)
        assert "TRUEODDS_MAX_EXPLAINED" in str(refused["detail"])
        assert server.post("digits", file, query="?explain=false").status_code == 200


class Service:
    """A model that goes by the brightness of one spot, its graph no graph at all; with an explainer of its answers."""

    spot = (slice(3, 5), slice(6, 8))

    def __init__(self, root: Path, executor: ThreadPoolExecutor, most: int = 2, max_wait_s: float = 30) -> None:
        found = bundle.load(write_bundle(root, labels=["dark", "light"]))
        answers = Answers(found)
        self.forwarded: list[int] = []
        self.slow_s = 0.0

        def forward(pixels: Pixels, *, alone: bool) -> list[Row]:
            time.sleep(self.slow_s)
            self.forwarded.append(len(pixels))
            brightness = pixels[:, *self.spot].mean((1, 2, 3)) / 255
            return answers.rows(outputs(np.stack([0.5 - brightness, brightness - 0.5], 1).astype(np.float32) * 4))

        turns = Turns(executor, Board(), on_loop=False)
        batcher = Batcher(forward, Limits(16, 100, max_wait_s), turns, lambda report: None)
        model = ServedModel(found, "none", cast("Backend", None), answers, BinaryAnswers(found, answers), batcher)
        registry = Registry({"pets": model}, executor)
        self.question = Question(model, Options(explain=True), binary=False)
        self.explainer = Explainer(
            Classifier(registry, 1_000_000, 1, AnswerCache(0), lambda *_: None), most, Pulse(Board())
        )

    def ask(self, upload: Upload) -> dict[str, Any]:
        async def asked() -> bytes:
            return (await self.explainer.response(self.question, upload, np.inf, "an-id")).body

        told: dict[str, Any] = json.loads(asyncio.run(asked()))
        return told


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    with ThreadPoolExecutor(1) as executor:
        made: list[Service] = []

        def make(**options: Any) -> Service:
            made.append(Service(tmp_path, executor, **options))
            return made[-1]

        yield make
        for each in made:
            each.explainer.close()


def lit() -> Pixels:
    """Black, but for the spot."""
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[Service.spot] = 255
    return pixels


def test_a_network_without_a_map_is_explained_by_occlusion(
    service: Callable[..., Service], caplog: pytest.LogCaptureFixture
) -> None:
    """Its map peaks where the class is; it takes 64 images, in batches as any; why is logged, once."""
    running = service()
    told = running.ask(Upload((), False, lit()[None]))
    assert told["predictions"][0]["label"] == "light"
    assert told["explanation"]["method"] == "occlusion"
    assert running.forwarded == [1, 16, 16, 16, 16]
    assert running.ask(Upload((), False, lit()[None])) == told
    colours = heat(told["explanation"])
    reddest = np.argwhere(colours[:, :, 1] == colours[:, :, 1].min())
    assert {tuple(place) for place in reddest.tolist()} <= {(y, x) for y in (2, 3, 4) for x in (6, 7)}
    assert colours.shape == (8, 16, 3)
    assert (colours[:, :3] == 255).all()
    assert (colours[:, 12:] == 255).all()
    # What is left is the answer to an image that has the mean colour there.
    colour = np.rint(255 * np.array(running.question.model.bundle.manifest.input.mean)).astype(np.uint8)
    left = running.ask(Upload((), False, np.full((1, 8, 16, 3), colour)))["predictions"]
    lost = told["predictions"][0]["probability"] - {each["label"]: each["probability"] for each in left}["light"]
    # The square's middle lies between two pixels.
    assert 0.7 * lost <= told["explanation"]["max"] <= lost
    assert caplog.text.count("pets is explained by occlusion") == 1


def test_what_takes_too_long_is_told_so(service: Callable[..., Service]) -> None:
    """503, when the time is over that a request may wait."""
    running = service(max_wait_s=0.2)
    running.slow_s = 0.1
    started = time.perf_counter()
    with pytest.raises(Overloaded):
        running.ask(Upload((), False, lit()[None]))
    assert time.perf_counter() - started < 5


def test_too_many_are_refused_before_the_work(service: Callable[..., Service]) -> None:
    """Nothing is classified of what will not be explained."""
    running = service(most=2)
    with pytest.raises(BodyTooLarge, match="These are 3 images; 2 are explained"):
        running.ask(Upload((b"", b"", b""), True))
    assert running.forwarded == []
