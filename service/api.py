"""The BentoML service: what `bentoml serve` and `bentoml build` find, and what BentoML's clients meet."""

from typing import Any

import bentoml
import numpy as np
import orjson
from bentoml.exceptions import InvalidArgument, NotFound, ServiceUnavailable

from service import bundle, images
from service.answers import Options, Row
from service.bentoml_seam import fronted_service, metrics_folder, worker_number
from service.errors import Problem, UndecodableImage
from service.ids import new_request_id
from service.registry import ServedModel
from service.requests import check_top_k
from service.settings import Settings
from service.worker import PIXELS_ROUTE, Worker

WORKER = Worker.of_this_process or Worker(Settings.from_environment(), metrics_folder(), worker_number())
SETTINGS = WORKER.settings
# Every other problem is the client's argument.
BENTOML_ERRORS = {404: NotFound, 503: ServiceUnavailable}


class Api:
    """The API route of BentoML's Python client.

    No route of BentoML's takes a file or an image: BentoML would fetch what looks like a URL in it.
    """

    def __init__(self) -> None:
        self.classifier = WORKER.models().classifier

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_bundles() -> None:
        """Refuse to start rather than start workers that cannot."""
        bundle.discover(SETTINGS.bundles, SETTINGS.models, SETTINGS.trust, SETTINGS.variant)

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
        results = [_result(served, row, options) for row in rows]
        return {"results": results} if several else results[0]


def _result(served: ServedModel, row: Row, options: Options) -> Any:
    request_id = new_request_id()
    if served.memory:
        served.memory.remember([row], request_id)
    return orjson.loads(served.answers.encode(row, options, request_id))


TrueOdds = fronted_service(
    WORKER,
    Api,
    name="trueodds",
    config={
        "workers": SETTINGS.worker_count,
        "traffic": {"timeout": 60},
        "logging": {"access": {"enabled": False}},
    },
)
