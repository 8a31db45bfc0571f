# SPDX-License-Identifier: MIT
"""Where the shards of a result lie while workers make it: a folder that all of them reach, or an object store.

    <draft>/zarr.json, c/...             the array
    <draft>/.halotile/run.json           which run it is of
    <draft>/.halotile/rows/3/0-2.json    a receipt: shards 0 and 1 of row 3 are there, with sizes and checksums

What is put appears under its name when all of it is there. A receipt is put after its shards are on the disk, so it
counts whoever has died meanwhile; putting both a second time changes nothing.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Protocol

from ..files import disk
from ..files.atomic import remove_folder, writing
from ..texts import quoted

__all__ = ["KEPT", "RUN", "Bucket", "Folder", "Receipts", "Store", "is_url", "store_at"]

KEPT, PART = ".halotile", ".part"
ROWS, RUN = f"{KEPT}/rows", f"{KEPT}/run.json"
GONE = "its temporary folder is not there"


class Store(Protocol):
    root: str

    def put(self, contents: dict[str, bytes]) -> None:
        """Each appears whole; all are on the disk when this returns. Raises OSError."""

    def get(self, name: str) -> bytes | None: ...

    def size(self, name: str) -> int:
        """-1 if there is none."""

    def names(self, folder: str) -> list[str]:
        """Names of all files below a folder, relative to it."""

    def drop(self, name: str) -> None:
        """Removes a file, if it is there."""

    def remove(self, folder: str) -> None:
        """Removes a folder and all that is in it, if it is there."""

    def tidy(self) -> None:
        """Removes what killed workers were putting."""


def is_url(path: str) -> bool:
    return "://" in path


def store_at(root: str) -> Store:
    return Bucket(root) if is_url(root) else Folder(root)


class Folder:
    def __init__(self, root: str):
        self.root = root

    def put(self, contents: dict[str, bytes]) -> None:
        folders = {os.path.dirname(name) for name in contents}
        with writing(self.root):
            if not os.path.isdir(self.root):
                raise FileNotFoundError(errno.ENOENT, GONE)
            for folder in folders:
                self._make(folder)
            for name, data in contents.items():
                target = os.path.join(self.root, name)
                self._put(os.path.dirname(target), target, data)
            for folder in folders:
                disk.sync_folder(os.path.join(self.root, folder))

    def _make(self, folder: str) -> None:
        """Never the root: one that was taken away does not come back."""
        made = self.root
        for part in filter(None, folder.split("/")):
            made = os.path.join(made, part)
            try:
                with suppress(FileExistsError):
                    os.mkdir(made)
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, GONE) from None

    def _put(self, folder: str, target: str, data: bytes) -> None:
        draft = os.path.join(folder, f".{secrets.token_hex(8)}{PART}")
        try:
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            try:
                disk.write(descriptor, data)
                disk.sync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(draft, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise

    def get(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError, NotADirectoryError), open(os.path.join(self.root, name), "rb") as file:
            return file.read()
        return None

    def size(self, name: str) -> int:
        with suppress(FileNotFoundError, NotADirectoryError):
            return os.path.getsize(os.path.join(self.root, name))
        return -1

    def names(self, folder: str) -> list[str]:
        top = os.path.join(self.root, folder)
        below = ((here, name) for here, _, names in os.walk(top) for name in names)
        return sorted(os.path.relpath(os.path.join(here, name), top) for here, name in below)

    def drop(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(os.path.join(self.root, name))

    def remove(self, folder: str) -> None:
        remove_folder(os.path.join(self.root, folder))

    def tidy(self) -> None:
        for name in self.names(""):
            if name.endswith(PART):
                self.drop(name)


class Bucket:
    """An object store, by fsspec. Objects appear whole; there are no folders to sync."""

    def __init__(self, root: str):
        self.root = root.rstrip("/")
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            raise ImportError(
                f"{root} needs fsspec and the package for its kind, such as s3fs ({quoted(error)})"
            ) from None
        self.files, self.base = url_to_fs(self.root, use_listings_cache=False)

    def _path(self, name: str) -> str:
        return f"{self.base}/{name}" if name else self.base

    def put(self, contents: dict[str, bytes]) -> None:
        with _as_oserror(self.root):
            for name, data in contents.items():
                self.files.pipe_file(self._path(name), data)

    def get(self, name: str) -> bytes | None:
        with _as_oserror(self.root), suppress(FileNotFoundError):
            return self.files.cat_file(self._path(name))
        return None

    def size(self, name: str) -> int:
        with _as_oserror(self.root), suppress(FileNotFoundError):
            return int(self.files.info(self._path(name))["size"])
        return -1

    def names(self, folder: str) -> list[str]:
        top = self._path(folder)
        with _as_oserror(self.root), suppress(FileNotFoundError):
            self.files.invalidate_cache()
            return sorted(one.removeprefix(f"{top}/") for one in self.files.find(top))
        return []

    def drop(self, name: str) -> None:
        with _as_oserror(self.root), suppress(FileNotFoundError):
            self.files.rm_file(self._path(name))

    def remove(self, folder: str) -> None:
        with _as_oserror(self.root), suppress(FileNotFoundError):
            self.files.rm(self._path(folder), recursive=True)

    def tidy(self) -> None:
        """Objects appear whole."""


class _as_oserror:
    """What libraries of stores raise, as an OSError that names the store."""

    def __init__(self, root: str):
        self.root = root

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise OSError(errno.EIO, f"the store failed: {quoted(error)}", self.root) from error


class Receipts:
    """Which shards are there.

    run: the run that may put some; None for one that only looks.
    """

    def __init__(self, store: Store, run: str | None = None):
        self.store, self.run = store, run

    def check(self) -> None:
        """Raises OSError if what is there is not of this run: it has ended, or lies elsewhere on this machine."""
        if self.run is None or self.store.get(RUN) != self.run.encode():
            text = "what was made of it is not seen on this worker, or is another run's: all workers need the same path"
            raise OSError(errno.ENOENT, text, self.store.root)

    def put(self, row: int, columns: range, shards: dict[str, bytes]) -> None:
        """Puts a row's shards, then their receipt."""
        self.check()
        self.store.put(shards)
        about = {name: [len(data), zlib.crc32(data)] for name, data in shards.items()}
        self.store.put({f"{ROWS}/{row}/{columns.start}-{columns.stop}.json": json.dumps(about).encode()})

    def columns(self, row: int) -> set[int]:
        """The shards of a row that are there."""
        return {column for name in self.store.names(f"{ROWS}/{row}") for column in _columns_of(name)}

    def all(self) -> set[tuple[int, int]]:
        """(row, column) of all shards that are there."""
        found = set()
        for name in self.store.names(ROWS):
            row, _, columns = name.replace(os.sep, "/").partition("/")
            if row.isdigit():
                found |= {(int(row), column) for column in _columns_of(columns)}
        return found

    def names(self) -> list[str]:
        return [name for name in self.store.names(ROWS) if name.endswith(".json")]

    def drop_false(self, names: Iterable[str]) -> list[str]:
        """Removes receipts whose shards are not what was put; returns their names."""
        false = [name for name in names if not self._is_true(f"{ROWS}/{name}")]
        for name in false:
            self.store.drop(f"{ROWS}/{name}")
        return false

    def _is_true(self, name: str) -> bool:
        try:
            about = json.loads(self.store.get(name) or b"")
            return bool(about) and all(self._is_there(shard, *kept) for shard, kept in about.items())
        except (ValueError, TypeError, AttributeError):
            return False

    def _is_there(self, shard: str, size: int, checksum: int) -> bool:
        if self.store.size(shard) != size:
            return False
        data = self.store.get(shard)
        return data is not None and len(data) == size and zlib.crc32(data) == checksum


def _columns_of(name: str) -> Iterator[int]:
    first, _, last = name.removesuffix(".json").partition("-")
    if name.endswith(".json") and first.isdigit() and last.isdigit():
        yield from range(int(first), int(last))
