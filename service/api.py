"""The BentoML service: what `bentoml serve` and `bentoml build` find."""

import sys
from typing import Any

import bentoml
import numpy as np
import orjson
from bentoml.exceptions import InvalidArgument, NotFound, ServiceUnavailable

from service import VERSION, bundle, images, registry
from service.access_log import AccessLog
from service.answers import Options
from service.bentoml_seam import BENTOML_PATHS, fronted_service, metrics_folder, worker_number
from service.board import Board
from service.cache import AnswerCache
from service.classifier import Classifier
from service.errors import Problem, UndecodableImage
from service.http import Front
from service.metrics import Metrics
from service.openapi import document
from service.requests import check_top_k, new_request_id
from service.server import Server
from service.settings import Settings, available_cores

SETTINGS = Settings.from_environment()
METRICS_FOLDER = metrics_folder()
BOARD = Board(METRICS_FOLDER and METRICS_FOLDER / "workers.board", worker_number())
PIXELS_ROUTE = "/classify_pixels"
# Every other problem is the client's argument.
BENTOML_ERRORS = {404: NotFound, 503: ServiceUnavailable}


class Api:
    """One worker: every model loaded and warm, and the API route of BentoML's Python client.

    No route of BentoML's takes a file or an image: BentoML would fetch what looks like a URL in it.
    """

    def __init__(self) -> None:
        self.metrics = Metrics(METRICS_FOLDER)
        self.log = AccessLog(sys.stderr, SETTINGS.access_log_sample)
        models = registry.load(SETTINGS, BOARD, self.metrics.batch, cache=SETTINGS.compiled)
        self.metrics.served(models)
        cache = AnswerCache(SETTINGS.cache_bytes)
        self.classifier = Classifier(models, SETTINGS.max_pixels, available_cores(), cache, self.metrics.cached)

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_bundles() -> None:
        """Refuse to start rather than start workers that cannot."""
        bundle.discover(SETTINGS.bundles, SETTINGS.models)

    @bentoml.api(route=PIXELS_ROUTE)  # type: ignore[untyped-decorator]
    async def classify_pixels(self, pixels: np.ndarray, model: str, top_k: int = 3) -> dict[str, Any]:
        """Classify pixels from 0 to 255: one image (H, W), (H, W, 3) or (H, W, 4), or several (N, H, W, 3)."""
        try:
            served = self.classifier.registry.named(model)
            options = Options(check_top_k(top_k, len(served.bundle.manifest.labels)))
            several = pixels.ndim == 4
            spec = served.bundle.manifest.input
            fed = [images.to_pixels(images.of_array(image), spec) for image in (pixels if several else [pixels])]
            if not fed:
                raise UndecodableImage("There is no image in an array of length 0.")
            rows = await self.classifier.classify_pixels(served, np.stack(fed))
        except Problem as problem:
            raise BENTOML_ERRORS.get(problem.status, InvalidArgument)(problem.detail) from problem
        results = [orjson.loads(served.answers.encode(row, options, new_request_id())) for row in rows]
        return {"results": results} if several else results[0]

    def close(self) -> None:
        self.classifier.close()
        self.log.close()


TrueOdds = fronted_service(
    Front(BENTOML_PATHS | {PIXELS_ROUTE}, SETTINGS, document(VERSION)),
    Api,
    serve=lambda config: Server(config, SETTINGS.deadlines, BOARD),
    name="trueodds",
    config={
        "workers": SETTINGS.worker_count,
        "traffic": {"timeout": 60},
        "logging": {"access": {"enabled": False}},
    },
)
