"""Labels in one SQLite file that all workers of a machine share.

Write-ahead logging, so that whoever reads holds up nobody who writes, and synchronous=FULL, so that what was answered
201 outlasts the machine's power too: a commit waits for the disk, a few ms in the store's own thread. Not on a file
system of a network: the workers share memory beside the file.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from service.errors import SettingError
from service.stores import (
    SCHEMA,
    Kept,
    Known,
    Label,
    LabelledAnswers,
    Outcome,
    Store,
    StoreError,
    Tallies,
    labelled_answers,
    settle,
    tally_of,
    tally_text,
    too_new,
)

# How long another worker's transaction is waited for.
BUSY_S = 3.0
# The log of what was written is cut back to so much.
LOG_BYTES = 16 * 1024 * 1024
TABLES = """
CREATE TABLE trueodds_labels (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    request_id TEXT NOT NULL,
    image INTEGER NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    calibration TEXT NOT NULL,
    logits BLOB NOT NULL,
    confidence REAL NOT NULL,
    predicted INTEGER NOT NULL,
    covered INTEGER NOT NULL,
    label TEXT NOT NULL,
    class_index INTEGER NOT NULL,
    correct INTEGER NOT NULL,
    is_ood INTEGER NOT NULL,
    sampling TEXT NOT NULL,
    answered REAL NOT NULL,
    recorded REAL NOT NULL,
    UNIQUE (request_id, image, model)
);
CREATE TABLE trueodds_drift (
    model TEXT NOT NULL,
    calibration TEXT NOT NULL,
    tally TEXT NOT NULL,
    PRIMARY KEY (model, calibration)
);
"""
INSERT = """
INSERT INTO trueodds_labels (
    request_id, image, model, version, calibration, logits, confidence, predicted, covered, label, class_index, correct,
    is_ood, sampling, answered, recorded
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
KNOWN = "SELECT model, calibration, label, sampling FROM trueodds_labels WHERE request_id = ? AND image = ? ORDER BY id"
TALLIES = "SELECT model, calibration, tally FROM trueodds_drift"
PUT_TALLY = "INSERT OR REPLACE INTO trueodds_drift VALUES (?, ?, ?)"
FORGET = "DELETE FROM trueodds_labels WHERE id <= (SELECT max(id) FROM trueodds_labels) - ?"
READ = (
    "SELECT logits, class_index, calibration, answered FROM trueodds_labels "
    "WHERE model = ? AND sampling = 'random' AND NOT is_ood ORDER BY id"
)

T = TypeVar("T")


class SqliteStore(Store):
    """`sqlite:///PATH`, the path from the root on; the file is made where there is none."""

    def __init__(self, url: str, most_rows: int) -> None:
        """Raises SettingError."""
        parts = urlsplit(url)
        path = unquote(parts.path)
        if parts.netloc or parts.query or parts.fragment or path.strip("/") == "" or "\0" in path:
            raise SettingError("TRUEODDS_FEEDBACK names no file; write sqlite:///PATH, from the root on.")
        self.path = Path(path)
        self._most_rows = most_rows
        self._connection: sqlite3.Connection | None = None

    def record(self, labels: Sequence[Label], now: float) -> list[Outcome]:
        with self._transaction() as connection:
            known: Known = {}
            for key in {(label.request_id, label.index) for label in labels}:
                known[key] = [Kept(*row) for row in connection.execute(KNOWN, key)]
            settled = settle(labels, known, _tallies(connection), now)
            connection.executemany(INSERT, settled.rows)
            connection.executemany(PUT_TALLY, [(*of, tally_text(tally)) for of, tally in settled.tallies.items()])
            connection.execute(FORGET, (self._most_rows,))
        return settled.outcomes

    def tallies(self) -> Tallies:
        return self._using(_tallies)

    def read(self, model: str) -> LabelledAnswers:
        # Who reads from outside has a name in mind, and may have misspelt it.
        if not self.path.exists():
            raise StoreError(f"there is no {self.path}; name the file of a service that has taken labels")
        return self._using(lambda connection: labelled_answers(connection.execute(READ, (model,)).fetchall()))

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All of it or nothing, and nobody else's meanwhile."""
        with self._used() as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")

    def _using(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._used() as connection:
            return work(connection)

    @contextmanager
    def _used(self) -> Iterator[sqlite3.Connection]:
        """The connection; after a failure another one, which takes nothing of what was begun with it."""
        try:
            self._connection = connection = self._connection or self._open()
            yield connection
        except BaseException as error:
            self.close()
            if isinstance(error, (sqlite3.Error, OSError)):
                raise StoreError(f"{self.path}: {error}") from error
            raise

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # For this user's eyes, as are the files that SQLite puts beside it.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            _wait_for_log(connection)
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
            _prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _wait_for_log(connection: sqlite3.Connection) -> None:
    """Workers that start together all ask for it, and SQLite lets nobody wait here."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _prepare(connection: sqlite3.Connection) -> None:
    """Make the tables where there are none. Raises StoreError for those of a version that is not known."""
    connection.execute("BEGIN IMMEDIATE")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        for statement in filter(str.strip, TABLES.split(";")):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA}")
    elif version != SCHEMA:
        raise too_new(version)
    connection.execute("COMMIT")


def _tallies(connection: sqlite3.Connection) -> Tallies:
    return {(model, calibration): tally_of(text) for model, calibration, text in connection.execute(TALLIES)}
