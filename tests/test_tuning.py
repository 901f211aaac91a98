"""service.tuning: the limit is the one the measurements call for, and a file of them can do no harm."""

import json
import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service import bundle, registry, tuning
from service.backends import Backend, Outputs, Placement, Plan, onnx
from service.board import Board
from service.bundle import Bundle
from service.documents import Variant
from service.images import Pixels
from service.settings import BUNDLES, Settings
from service.tuning import LONGEST_BATCH_S, PERFORMANCE, Measured, Performance

DIGITS = bundle.discover(BUNDLES)["digits"]
PLACEMENT = Placement("onnx", "cpu", "a processor", "a runtime", 1, 2)
ENTRY = Measured(
    placement=PLACEMENT, microseconds={1: 9, 8: 40}, wide_microseconds={8: 20}, max_batch_size=8, wide_from=8
)

Seconds = st.dictionaries(st.sampled_from([1, 2, 4, 8, 16, 32]), st.floats(1e-6, 1, allow_nan=False), min_size=1)


class Network:
    """Takes `fixed` seconds a batch and `each` an image; half as long with all cores; by Winograd as for 4.5."""

    device = "cpu"
    take = staticmethod(time.sleep)

    def __init__(self, fixed: float = 0.0, each: float = 0.0, winograd: bool = False) -> None:
        self.fixed, self.each = fixed, each
        self.placement = replace(PLACEMENT, winograd="a library" if winograd else "")
        self.plan = Plan(wide_from=1)
        self.sizes: list[int] = []
        self.plans_seen: set[Plan] = set()

    def forward(self, pixels: Pixels, *, alone: bool = False) -> Outputs:
        self.sizes.append(len(pixels))
        self.plans_seen.add(self.plan)
        images = 4.5 if self.placement.winograd and self.plan.winograd_from else len(pixels)
        self.take((self.fixed + self.each * images) / (2 if alone else 1))
        column = np.zeros(len(pixels), np.float32)
        return Outputs(column[:, None], column[:, None], column[:, None] > 0, column, column > 0, column)


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks take exactly as long as they should, on a quiet machine: time passes by their runs only."""
    now = [0.0]

    def take(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: now[0], process_time=time.process_time))
    monkeypatch.setattr(tuning.Bystanders, "leave_cores", lambda self, wanted: True)
    monkeypatch.setattr(Network, "take", staticmethod(take))


@pytest.fixture
def copied(tmp_path: Path) -> Bundle:
    """The digit bundle in a folder of its own, not measured."""
    directory = tmp_path / "bundles" / "digits" / "1"
    shutil.copytree(DIGITS.directory, directory)
    (directory / PERFORMANCE).unlink(missing_ok=True)
    return bundle.load(directory)


@given(seconds=Seconds)
def test_the_limit_is_the_smallest_that_is_nearly_best(seconds: dict[int, float]) -> None:
    """Within two per cent of the best throughput of the batches that are short enough, and no smaller one is; or 8."""
    seconds_served = {size: taken + tuning.BATCH_S for size, taken in seconds.items()}
    limit = tuning.choose_limit(seconds)
    allowed = {size for size, taken in seconds.items() if taken <= LONGEST_BATCH_S} or {min(seconds)}
    assert limit in allowed
    least = max(size for size in allowed if size <= max(8, min(allowed)))
    if limit == least:
        return
    assert limit > least
    best = max(size / seconds_served[size] for size in allowed)
    assert limit / seconds_served[limit] >= best * 0.9799
    assert all(size / seconds_served[size] < best * 0.9801 for size in allowed if size < limit)


@given(narrow=Seconds, gain=st.floats(0.2, 5))
def test_all_cores_are_used_only_from_where_they_pay(narrow: dict[int, float], gain: float) -> None:
    """At that size and at every larger one measured; a uniform gain decides for all sizes or none."""
    wide = {size: taken / gain for size, taken in narrow.items()}
    if abs(gain - tuning.WIDE_GAIN) > 1e-6:
        assert tuning.choose_wide(narrow, wide) == (min(narrow) if gain > tuning.WIDE_GAIN else None)


def test_all_cores_are_left_alone_by_small_batches() -> None:
    """Where waking threads costs a small batch more than they bring."""
    narrow, wide = {1: 1.0, 2: 2.0, 4: 4.0}, {1: 1.5, 2: 1.2, 4: 2.0}
    assert tuning.choose_wide(narrow, wide) == 2
    assert tuning.choose_wide(narrow, {}) is None


@pytest.mark.usefixtures("undisturbed")
def test_a_sweep_tries_no_batch_that_takes_too_long() -> None:
    """A slow network is measured at the sizes it could be served at, and its way with all cores too."""
    network = Network(each=0.012)
    swept = tuning.sweep(network, tuning.Shape(2, 2), 0.01)
    assert set(swept.narrow) == set(swept.wide) == set(network.sizes) == {1, 2, 4}
    assert all(swept.wide[size] < swept.narrow[size] for size in swept.narrow)
    assert not swept.winograd
    assert network.plan.wide_from == 1


@pytest.mark.usefixtures("undisturbed")
def test_a_fixed_cost_asks_for_larger_batches() -> None:
    """2 ms a batch and 20 µs an image: the more the better; nothing but images: one will do."""
    large = tuning.sweep(Network(fixed=0.002, each=0.00002), tuning.Shape(2, 2), 0.05)
    assert tuning.choose_limit(large.narrow) == 32
    small = tuning.sweep(Network(each=0.04), tuning.Shape(2, 2), 0.05)
    assert tuning.choose_limit(small.narrow) == 1
    assert tuning.choose_limit({1: 0.001, 2: 0.0015, 4: 0.0025, 8: 0.0055, 16: 0.02}) == 8
    assert tuning.choose_limit({1: 0.001, 2: 0.002, 4: 0.004, 8: 0.06}) == 4


@given(
    fixed=st.floats(0, 10),
    gain=st.floats(0.5, 3),
    extra=st.floats(0, 30),
    largest=st.sampled_from([1, 2, 4, 8, 16, 32]),
)
def test_winograd_begins_where_it_is_faster(fixed: float, gain: float, extra: float, largest: int) -> None:
    """From that batch on and at no smaller one, whether measured or between those measured; or nowhere."""
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= largest]
    narrow = {size: fixed + size for size in sizes}
    winograd = {size: fixed + extra + size / gain for size in sizes}
    found = tuning.choose_winograd(narrow, winograd)
    worth_it = any(narrow[size] >= winograd[size] * tuning.WINOGRAD_GAIN for size in sizes)
    faster = [size for size in range(1, largest + 1) if extra + size / gain < size - 1e-9]
    if found is None:
        assert not (worth_it and faster)
    else:
        assert worth_it
        assert set(faster) <= set(range(found, largest + 1)) <= {*faster, found}
    assert tuning.choose_winograd(narrow, {}) is None


def test_a_lone_image_is_left_to_all_cores_that_are_much_faster() -> None:
    """By a quarter; not where they are little faster, are not there, or Winograd begins later anyway."""
    winograd = {1: 4.0, 2: 5.0}
    assert tuning.sparing_lone_images(1, {1: 3.2, 2: 5.0}, winograd) == 2
    assert tuning.sparing_lone_images(1, {1: 3.3, 2: 1.0}, winograd) == 1
    assert tuning.sparing_lone_images(1, {}, winograd) == 1
    assert tuning.sparing_lone_images(2, {1: 1.0, 2: 1.0}, winograd) == 2
    assert tuning.sparing_lone_images(1, {1: 3.2}, {1: 4.0}) is None
    assert tuning.sparing_lone_images(None, {1: 1.0}, winograd) is None


@pytest.mark.usefixtures("undisturbed")
def test_a_batch_is_measured_in_each_way_it_can_be_run(copied: Bundle) -> None:
    """The limit follows from the way that a batch of a size is really run in; a lone image still takes all cores."""
    network = Network(each=0.001, winograd=True)
    entry, quiet = tuning.measure(network, copied, 0.01)
    assert network.plans_seen >= {Plan(), Plan(wide_from=1), Plan(winograd_from=1)}
    assert set(entry.microseconds) == set(entry.winograd_microseconds) == set(entry.wide_microseconds)
    assert entry.winograd_from == 5
    assert network.plan == Plan(wide_from=1)
    assert quiet
    assert entry.wide_from == 1


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Whole, for people to read too, and with nothing else left in the folder."""
    performance = Performance(model_sha256=DIGITS.sha256, entries=[ENTRY])
    tuning.write(tmp_path / "deeper" / PERFORMANCE, performance)
    assert tuning.read(tmp_path / "deeper" / PERFORMANCE, DIGITS.sha256) == performance
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == [PERFORMANCE]


def test_a_new_measurement_replaces_that_of_the_same_machine_only() -> None:
    """Another machine's, or another number of threads, stays."""
    other = ENTRY.model_copy(update={"placement": Placement("onnx", "cpu", "another", "a runtime", 1, 2)})
    newer = ENTRY.model_copy(update={"max_batch_size": 1})
    performance = Performance(model_sha256=DIGITS.sha256, entries=[ENTRY, other]).updated(newer)
    assert performance.of(PLACEMENT) == newer
    assert performance.of(other.placement) == other
    assert len(performance.entries) == 2


def edited(**changes: object) -> str:
    document = Performance(model_sha256=DIGITS.sha256, entries=[ENTRY]).model_dump(mode="json")
    document["entries"][0] |= changes
    return json.dumps(document)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"schema_version": 2, "model_sha256": "' + DIGITS.sha256 + '"}',
        edited(max_batch_size=0),
        edited(max_batch_size=100_000),
        edited(max_batch_size=4),
        edited(wide_from=2),
        edited(microseconds={"8": -1}),
        edited(microseconds={"8": "NaN"}),
        edited(microseconds={}),
        edited(more="of it"),
    ],
)
def test_a_file_that_makes_no_sense_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    """It is vouched for by nobody, and worth no more than a measurement."""
    path = tmp_path / PERFORMANCE
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        assert tuning.read(path, DIGITS.sha256).entries == []
    assert f"{path} is ignored" in caplog.text


@given(content=st.binary(max_size=100))
def test_no_bytes_whatever_keep_a_service_from_starting(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """Reading never raises."""
    path = tmp_path_factory.mktemp("bytes") / PERFORMANCE
    path.write_bytes(content)
    assert tuning.read(path, DIGITS.sha256).entries == []


def test_measurements_of_another_network_do_not_count(tmp_path: Path) -> None:
    """A bundle exported again is measured again."""
    tuning.write(tmp_path / PERFORMANCE, Performance(model_sha256="0" * 64, entries=[ENTRY]))
    assert tuning.read(tmp_path / PERFORMANCE, DIGITS.sha256).entries == []


def test_a_bundle_with_measurements_is_served_without_measuring(copied: Bundle) -> None:
    """It is still the bundle its manifest describes, and its limit is known at once."""
    tuning.write(copied.directory / PERFORMANCE, Performance(model_sha256=copied.sha256, entries=[ENTRY]))
    network = Network()
    assert tuning.tuned(bundle.load(copied.directory), network) == ENTRY
    assert network.sizes == []
    assert network.plan.wide_from == 8


def test_the_cache_remembers_and_the_bundle_is_left_alone(
    copied: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service measures once a machine, and writes nothing into the folder it serves from."""
    monkeypatch.setattr(tuning, "BUDGET_S", 0.01)
    monkeypatch.setattr(tuning.Bystanders, "leave_cores", lambda self, wanted: True)
    before = sorted(path.name for path in copied.directory.iterdir())
    first = tuning.tuned(copied, Network(each=0.001), tmp_path / "cache")
    again = Network(each=0.001)
    assert tuning.tuned(copied, again, tmp_path / "cache") == first
    assert again.sizes == []
    assert sorted(path.name for path in copied.directory.iterdir()) == before


def test_workers_that_start_together_measure_one_after_another(
    copied: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One measures; the others wait and take its result."""
    monkeypatch.setattr(tuning.Bystanders, "leave_cores", lambda self, wanted: True)
    networks = [Network(each=0.001) for _ in range(3)]
    with ThreadPoolExecutor(3) as executor:
        entries = list(executor.map(lambda network: tuning.tuned(copied, network, tmp_path / "cache"), networks))
    assert sum(bool(network.sizes) for network in networks) == 1
    assert entries[0] == entries[1] == entries[2]


def test_what_was_measured_among_others_is_used_cautiously_and_forgotten(
    copied: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While others use the cores nothing is learnt of what all cores give, and nothing worth keeping."""
    monkeypatch.setattr(tuning.Bystanders, "leave_cores", lambda self, wanted: False)
    entry = tuning.tuned(copied, Network(each=0.001), tmp_path / "cache")
    assert entry.wide_from is None
    assert entry.max_batch_size == 16
    assert not (tmp_path / "cache" / "performance").exists()


@pytest.mark.slow
def test_without_a_place_to_write_a_measurement_lives_in_memory(copied: Bundle, tmp_path: Path) -> None:
    """A cache that is a file, or none at all: the service starts all the same."""
    (tmp_path / "file").touch()
    for cache in (None, tmp_path / "file"):
        assert tuning.tuned(copied, Network(each=0.001), cache).max_batch_size >= 1


def test_bystanders_are_noticed(tmp_path: Path) -> None:
    """Of two cores, one that stays idle is ours to use and one that is taken is not."""
    stat = tmp_path / "stat"
    stat.write_text("cpu  0 0 0 1000 0 0 0 0 0 0\n")
    bystanders = tuning.Bystanders(stat)
    time.sleep(0.05)
    assert not bystanders.leave_cores(2)
    stat.write_text("cpu  0 0 0 1100 0 0 0 0 0 0\n")
    assert bystanders.leave_cores(2)
    assert tuning.Bystanders(tmp_path / "none").leave_cores(2)


@pytest.mark.slow
def test_a_real_model_is_measured_and_the_table_shows_it(copied: Bundle) -> None:
    """Beside the bundle, for this machine; the table has a row for each way to run it."""
    backend = onnx.load(copied.directory, "cpu", 1, wide_threads=2)
    (entry,) = tuning.tune(copied, [backend], 0.05)
    assert 1 in entry.microseconds
    assert entry.placement == backend.placement
    table = tuning.table([entry])
    assert len(table.splitlines()) == 3
    assert "batch 16" in table


@pytest.mark.slow
def test_the_command_measures_every_served_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    """And with --dry-run leaves the bundles as they are."""
    assert tuning.main(["--dry-run", "--seconds", "0.01"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in bundle.discover(BUNDLES))
    assert "onnx cpu" in printed


def test_committed_measurements_are_sound(caplog: pytest.LogCaptureFixture) -> None:
    """Where a committed bundle carries some, they are of its own network and can be used."""
    for found in bundle.discover(BUNDLES).values():
        path = found.directory / PERFORMANCE
        assert not path.exists() or tuning.read(path, found.sha256).entries
    assert caplog.text == ""


@settings(max_examples=3, deadline=None)
@given(size=st.sampled_from([0, 3]))
def test_the_registry_serves_at_the_measured_limit_or_the_one_that_is_set(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    """0 is "as measured"; any other number is taken at its word."""
    cache = tmp_path_factory.mktemp("cache")
    chosen = Settings(models=("digits",), max_batch_size=size)
    bundles = bundle.discover(chosen.bundles, chosen.models, chosen.trust, chosen.variant)
    registry.prepare(bundles, chosen, cache)
    loaded = registry.load(chosen, Board(), lambda name, report: None, cache)
    try:
        model = loaded.named("digits")
        expected = size or tuning.tuned(model.bundle, model.backend, cache).max_batch_size
        assert model.batcher._queue._limits.max_batch_size == expected
    finally:
        loaded.close()


@pytest.mark.parametrize(
    ("variant", "winograd"), [(None, True), (Variant(precision="int8", made_from=DIGITS.seal.pin), False)]
)
def test_winograd_is_for_float32_alone(variant: Variant | None, winograd: bool) -> None:
    """A variant's convolutions are not float32's, so no other library is asked to compute them."""
    found = replace(DIGITS, manifest=DIGITS.manifest.model_copy(update={"variant": variant}))
    asked: list[bool] = []

    def load(*_: Any, winograd: bool = False, **others: Any) -> Backend:
        asked.append(winograd)
        return onnx.load(DIGITS.directory, "cpu", 1)

    tuning.loaded(load, found, Settings(winograd=True))
    tuning.loaded(load, found, Settings(winograd=False))
    assert asked == [winograd, False]
