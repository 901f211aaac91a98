"""service.keys: keys are made, listed, revoked and found, and what is kept of them opens nothing."""

import json
import stat
from pathlib import Path

import pytest

from service.errors import SettingError
from service.keys import KeyFile, KeyRing, main
from service.quota import Quota


def run(file: Path, *arguments: str) -> int:
    return main(["--file", str(file), *arguments])


def test_a_key_is_printed_once_and_kept_as_a_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a file for this user's eyes."""
    file = tmp_path / "keys.json"
    assert run(file, "add", "shop", "--scopes", "infer", "feedback", "--requests-per-second", "2.5") == 0
    key = capsys.readouterr().out.strip()
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = KeyRing(file).find(key.encode())
    assert found is not None
    name, entry = found
    assert (name, set(entry.scopes), entry.quota) == ("shop", {"infer", "feedback"}, Quota(400_000_000, 3, 0))
    assert run(file, "list") == 0
    assert capsys.readouterr().out == "shop\tfeedback,infer\t2.5/s\n"
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_a_revoked_key_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ring knows so at its next look, and its generation tells."""
    file, time = tmp_path / "keys.json", [0.0]
    run(file, "add", "one", "--scopes", "infer")
    key = capsys.readouterr().out.strip().encode()
    ring = KeyRing(file, lambda: time[0])
    assert run(file, "revoke", "one") == 0
    assert ring.refresh() == 0
    assert ring.find(key)
    time[0] = 1
    assert ring.refresh() == 1
    assert ring.find(key) is None
    time[0] = 2
    assert ring.refresh() == 1


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And change nothing."""
    file = tmp_path / "keys.json"
    run(file, "add", "one", "--scopes", "infer")
    before = file.read_bytes()
    capsys.readouterr()
    for arguments, told in (
        (("add", "one", "--scopes", "infer"), "already"),
        (("revoke", "two"), "no key 'two'"),
        (("add", "a b", "--scopes", "infer"), "match"),
        (("add", "b", "--scopes", "infer", "--burst", "3"), "burst"),
    ):
        assert run(file, *arguments) == 1
        assert told in capsys.readouterr().err
    assert run(tmp_path / "keys.toml", "add", "one", "--scopes", "infer") == 1
    assert file.read_bytes() == before


ENTRY = {"sha256": "0" * 64, "scopes": ["infer"]}


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"keys": {"a": {**ENTRY, "scopes": []}}},
        {"keys": {"a": {**ENTRY, "scopes": ["root"]}}},
        {"keys": {"a": {**ENTRY, "sha256": "plain-secret"}}},
        {"keys": {"a": {**ENTRY, "key": "plain-secret"}}},
        {"keys": {"a": ENTRY, "b": ENTRY}},
        {"keys": {"a": {**ENTRY, "concurrent": 0}}},
        {"keys": {"a": {**ENTRY, "requests_per_second": "plain-secret"}}},
    ],
)
def test_a_file_that_makes_no_sense_is_refused_without_a_quotation(document: object, tmp_path: Path) -> None:
    """Whoever puts a key there by mistake does not find it in the log."""
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(document))
    with pytest.raises(SettingError) as refusal:
        KeyFile.read(file)
    assert "plain-secret" not in str(refusal.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """They could make keys."""
    file = tmp_path / "keys.json"
    file.write_text('{"keys": {}}')
    file.chmod(0o622)
    with pytest.raises(SettingError, match="others"):
        KeyFile.read(file)


def test_toml_is_read(tmp_path: Path) -> None:
    """By its name."""
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.shop]\nsha256 = "{"1" * 64}"\nscopes = ["infer"]\nconcurrent = 3\n')
    assert KeyFile.read(file).keys["shop"].quota == Quota(0, 0, 3)
