"""Labels in a PostgreSQL database, which services on several machines may share.

One connection for each worker, made when it is needed and made anew when it is lost. Whoever writes takes one lock of
the database's, so labels are counted in the order of their numbers, as in SQLite.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

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

if TYPE_CHECKING:
    import asyncpg

# For a connection, and for one statement.
CONNECT_S, STATEMENT_S = 3.0, 5.0
# Of ours among the locks that applications may name: "trueodds".
LOCK = int.from_bytes(b"trueodds") >> 1
TABLES = """
CREATE TABLE IF NOT EXISTS trueodds_labels (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text NOT NULL,
    image integer NOT NULL,
    model text NOT NULL,
    version text NOT NULL,
    calibration text NOT NULL,
    logits bytea NOT NULL,
    confidence double precision NOT NULL,
    predicted integer NOT NULL,
    covered boolean NOT NULL,
    label text NOT NULL,
    class_index integer NOT NULL,
    correct boolean NOT NULL,
    is_ood boolean NOT NULL,
    sampling text NOT NULL,
    answered double precision NOT NULL,
    recorded double precision NOT NULL,
    UNIQUE (request_id, image, model)
);
CREATE TABLE IF NOT EXISTS trueodds_drift (
    model text NOT NULL,
    calibration text NOT NULL,
    tally text NOT NULL,
    PRIMARY KEY (model, calibration)
);
CREATE TABLE IF NOT EXISTS trueodds_schema (version integer NOT NULL);
"""
INSERT = """
INSERT INTO trueodds_labels (
    request_id, image, model, version, calibration, logits, confidence, predicted, covered, label, class_index, correct,
    is_ood, sampling, answered, recorded
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
"""
KNOWN = (
    "SELECT request_id, image, model, calibration, label, sampling FROM trueodds_labels "
    "WHERE (request_id, image) IN (SELECT * FROM unnest($1::text[], $2::integer[])) ORDER BY id"
)
TALLIES = "SELECT model, calibration, tally FROM trueodds_drift"
PUT_TALLY = (
    "INSERT INTO trueodds_drift VALUES ($1, $2, $3) "
    "ON CONFLICT (model, calibration) DO UPDATE SET tally = excluded.tally"
)
FORGET = "DELETE FROM trueodds_labels WHERE id <= (SELECT max(id) FROM trueodds_labels) - $1::bigint"
READ = (
    "SELECT logits, class_index, calibration, answered FROM trueodds_labels "
    "WHERE model = $1 AND sampling = 'random' AND NOT is_ood ORDER BY id"
)

T = TypeVar("T")


class PostgresStore(Store):
    """`postgresql://USER:PASSWORD@HOST:PORT/DATABASE`, as libpq has it. The tables are made where there are none."""

    def __init__(self, url: str, most_rows: int) -> None:
        """Raises SettingError."""
        try:
            import asyncpg
        except ModuleNotFoundError:
            raise SettingError(
                "TRUEODDS_FEEDBACK names a PostgreSQL database, for which a package is missing; "
                "pip install --require-hashes -r requirements/postgres.lock"
            ) from None
        self._asyncpg = asyncpg
        self._url = url
        self._most_rows = most_rows
        self._runner: asyncio.Runner | None = None
        self._connection: asyncpg.Connection | None = None

    def record(self, labels: Sequence[Label], now: float) -> list[Outcome]:
        async def work(connection: "asyncpg.Connection") -> list[Outcome]:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                settled = settle(labels, await _known(connection, labels), await _tallies(connection), now)
                await connection.executemany(INSERT, settled.rows)
                changed = [(*of, tally_text(tally)) for of, tally in settled.tallies.items()]
                await connection.executemany(PUT_TALLY, changed)
                await connection.execute(FORGET, self._most_rows)
            return settled.outcomes

        return self._run(work)

    def tallies(self) -> Tallies:
        return self._run(_tallies)

    def read(self, model: str) -> LabelledAnswers:
        async def work(connection: "asyncpg.Connection") -> LabelledAnswers:
            rows = await connection.fetch(READ, model, timeout=None)
            return labelled_answers([tuple(row) for row in rows])

        return self._run(work)

    def close(self) -> None:
        self._disconnect()
        runner, self._runner = self._runner, None
        if runner:
            runner.close()

    def _run(self, work: Callable[["asyncpg.Connection"], Awaitable[T]]) -> T:
        """By a loop of the store's own. A connection that was lost since it was last used is made anew, once."""
        self._runner = self._runner or asyncio.Runner()
        for connected in (self._connection is not None, False):
            try:
                return self._runner.run(self._work(work))
            except StoreError:
                self._disconnect()
                raise
            except (OSError, self._asyncpg.PostgresError, self._asyncpg.InterfaceError) as error:
                self._disconnect()
                if not connected:
                    raise StoreError(self._told(error)) from None
        raise AssertionError

    async def _work(self, work: Callable[["asyncpg.Connection"], Awaitable[T]]) -> T:
        if self._connection is None:
            self._connection = await self._connected()
        return await work(self._connection)

    async def _connected(self) -> "asyncpg.Connection":
        connection = await self._asyncpg.connect(
            self._url,
            timeout=CONNECT_S,
            command_timeout=STATEMENT_S,
            server_settings={"application_name": "trueodds"},
        )
        try:
            await _prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.terminate()

    def _told(self, error: Exception) -> str:
        """What went wrong, without the password."""
        told = f"PostgreSQL: {str(error) or type(error).__name__}"
        password = urlsplit(self._url).password
        return told.replace(password, "…") if password else told


async def _prepare(connection: "asyncpg.Connection") -> None:
    """Make the tables where there are none. Raises StoreError for those of a version that is not known."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        if not await connection.fetchval("SELECT to_regclass($1)::text", "trueodds_schema"):
            await connection.execute(TABLES)
            await connection.execute("INSERT INTO trueodds_schema VALUES ($1)", SCHEMA)
        version = await connection.fetchval("SELECT version FROM trueodds_schema")
    if version != SCHEMA:
        raise too_new(version)


async def _known(connection: "asyncpg.Connection", labels: Sequence[Label]) -> Known:
    keys = sorted({(label.request_id, label.index) for label in labels})
    known: Known = {}
    for request_id, image, *row in await connection.fetch(KNOWN, *map(list, zip(*keys, strict=True))):
        known.setdefault((request_id, image), []).append(Kept(*row))
    return known


async def _tallies(connection: "asyncpg.Connection") -> Tallies:
    rows = await connection.fetch(TALLIES)
    return {(model, calibration): tally_of(text) for model, calibration, text in rows}
