"""export.original: what another bundle is made of is really this one's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from export.gates import CalibrationError
from export.original import COMPARED, calibration_of, compared, network_of, strangeness_of
from models import MODELS, weights_path
from models.formats import DataError
from service import bundle
from service.audit import array_digest
from tests.conftest import committed
from tests.test_bundle import edit_manifest, write_bundle


@pytest.mark.slow
def test_the_network_is_the_bundles(tmp_path: Path) -> None:
    """Weights that answer otherwise are refused, and what to name instead is told."""
    found = bundle.load(committed("digits"))
    network_of(found, weights_path("digits"))
    torch.save(MODELS["digits"].build().state_dict(), tmp_path / "other.pt")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"not those of .*logits differ by .*--weights"):
        network_of(found, tmp_path / "other.pt")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_what_is_strange_is_read_of_the_graph(name: str) -> None:
    """Method, threshold and the arrays whose digests the calibration has."""
    found = bundle.load(committed(name))
    strange = strangeness_of(found)
    assert strange.ood == calibration_of(found).ood
    assert {key: array_digest(value) for key, value in strange.params.items()} == strange.ood.parameters_sha256


def test_what_was_never_calibrated_is_refused(tmp_path: Path) -> None:
    """There is nothing to go by."""
    directory = write_bundle(tmp_path)
    edit_manifest(directory, lambda manifest: manifest["files"].pop("calibration.json"))
    with pytest.raises(CalibrationError, match="was never calibrated; export it"):
        calibration_of(bundle.load(directory))


def test_what_is_compared_is_what_the_network_takes() -> None:
    """The same each time: noise, and what has more in it."""
    found = bundle.load(committed("digits"))
    spec = found.manifest.input
    assert compared(found).shape[1:] == (spec.height, spec.width, 3)
    assert len(compared(found)) > COMPARED
    np.testing.assert_array_equal(compared(found), compared(found))
