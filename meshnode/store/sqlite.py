"""The SQLite back end: one table in WAL mode, for platforms without a LevelDB wheel."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attrs

from meshnode.flow.lanes import Lanes
from meshnode.store.failures import explain
from meshnode.store.protocol import Snapshot, WriteBatch, prefix_end

__all__ = ["SqliteStore"]

_FILE = "store.sqlite3"
_PAGE_ROWS = 256  # rows fetched at a time; bounds memory, and no cursor stays open while the caller works


def _connect(path: Path) -> sqlite3.Connection:
    # One thread at a time uses a connection: the Trio thread reads, the store lane (one thread) writes.
    return sqlite3.connect(path / _FILE, isolation_level=None, check_same_thread=False, timeout=0.0)


@attrs.define(eq=False)
class _Reader:
    """A connection that only reads; inside a transaction it is a snapshot."""

    _reading: sqlite3.Connection
    _path: Path

    def get(self, key: bytes) -> bytes | None:
        """See KeyValueStore."""
        try:
            row = self._reading.execute("SELECT value FROM pairs WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise explain(error, self._path) from error
        return None if row is None else bytes(row[0])

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        end = prefix_end(prefix)
        upper, bounds = ("", ()) if end is None else (" AND key < ?", (end,))
        query = f"SELECT key, value FROM pairs WHERE key {{}} ?{upper} ORDER BY key LIMIT {_PAGE_ROWS}"  # noqa: S608
        return self._walk(query, prefix, bounds)

    def _walk(self, query: str, start: bytes, bounds: tuple[bytes, ...]) -> Iterator[tuple[bytes, bytes]]:
        comparison = ">="
        while True:
            try:
                rows = self._reading.execute(query.format(comparison), (start, *bounds)).fetchall()
            except sqlite3.Error as error:
                raise explain(error, self._path) from error
            yield from rows
            if len(rows) < _PAGE_ROWS:
                return
            start, comparison = rows[-1][0], ">"

    def close(self) -> None:
        """See KeyValueStore."""
        self._reading.close()


@attrs.define(eq=False)
class SqliteStore(_Reader):
    """An open database file, locked against other processes by a held write lock on a second file."""

    _writing: sqlite3.Connection
    _lock: sqlite3.Connection
    _lanes: Lanes

    @classmethod
    def open(cls, path: Path, lanes: Lanes) -> "SqliteStore":
        """Open or create the database in folder `path`; blocks, so call it in the store lane. Raises StoreError."""
        opened: list[sqlite3.Connection] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            # WAL lets a second process in; an exclusive transaction on a file of its own keeps it out, and the
            # system drops it when the process dies.
            lock = sqlite3.connect(path / "lock.sqlite3", isolation_level=None, check_same_thread=False, timeout=0.0)
            opened.append(lock)
            lock.execute("BEGIN EXCLUSIVE")
            writing = _connect(path)
            opened.append(writing)
            writing.execute("PRAGMA journal_mode=WAL")
            writing.execute(
                "CREATE TABLE IF NOT EXISTS pairs (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
            reading = _connect(path)
            opened.append(reading)
            reading.execute("PRAGMA query_only=1")
        except (sqlite3.Error, OSError) as error:
            for connection in opened:
                connection.close()
            raise explain(error, path) from error
        return cls(reading, path, writing, lock, lanes)

    def iterate(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """See KeyValueStore."""
        return self._iterate_snapshot(self.snapshot(), prefix)

    @staticmethod
    def _iterate_snapshot(snapshot: Snapshot, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from snapshot.iterate(prefix)
        finally:
            snapshot.close()

    def batch(self) -> WriteBatch:
        """See KeyValueStore."""
        return WriteBatch()

    async def commit(self, batch: WriteBatch, *, sync: bool = False) -> None:
        """See KeyValueStore."""
        await self._lanes.run("store", self._write, tuple(batch.changes), sync)

    def _write(self, changes: tuple[tuple[bytes, bytes | None], ...], sync: bool) -> None:
        try:
            self._writing.execute(f"PRAGMA synchronous={'FULL' if sync else 'NORMAL'}")
            self._writing.execute("BEGIN IMMEDIATE")
            try:
                for key, value in changes:
                    if value is None:
                        self._writing.execute("DELETE FROM pairs WHERE key = ?", (key,))
                    else:
                        self._writing.execute("INSERT OR REPLACE INTO pairs VALUES (?, ?)", (key, value))
                self._writing.execute("COMMIT")
            finally:
                if self._writing.in_transaction:
                    self._writing.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise explain(error, self._path) from error

    def snapshot(self) -> Snapshot:
        """See KeyValueStore."""
        self.get(b"")  # says so when the store is closed
        connection = _connect(self._path)
        try:
            connection.execute("PRAGMA query_only=1")
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM pairs LIMIT 1").fetchone()  # the first read fixes the moment
        except sqlite3.Error as error:
            connection.close()
            raise explain(error, self._path) from error
        return _Reader(connection, self._path)

    def close(self) -> None:
        """See KeyValueStore."""
        self._reading.close()
        self._writing.close()
        self._lock.close()
