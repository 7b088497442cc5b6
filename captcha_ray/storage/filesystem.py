"""Bytes behind a URI: a local path, `s3://bucket/key` or `gs://bucket/key`.

Credentials and endpoints come from the environment, a profile or the machine's role (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), never
from here. Local files are read with the standard library, object stores through `objectstore`. Every write is atomic:
a reader sees the old bytes or the new. Does not cache.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from captcha_ray.errors import InputError
from captcha_ray.storage import bucket_listing, objectstore
from captcha_ray.storage.objectstore import Entry

REMOTE = ("s3://", "gs://")

PAGE_FILES = 1000
"""Local files per page of a listing, as many as S3 gives."""


HIDDEN_FILES = {".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
"""Files that operating systems leave in folders, lower case."""


def speakable(uri: str) -> str:
    """The URI, with the bytes of a file name that are not UTF-8 escaped: no table could hold them."""
    return uri.encode("utf-8", "backslashreplace").decode()


def is_hidden(uri: str, corpus: str) -> bool:
    """Whether a file is an operating system's or hidden below the corpus, and so no image of it."""
    below = uri.removeprefix(corpus).lstrip("/").split("/")
    return uri.rpartition("/")[2].lower() in HIDDEN_FILES or any(
        part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in below
    )


def is_remote(uri: str) -> bool:
    """Whether the URI names an object store."""
    return uri.startswith(REMOTE)


def is_known(uri: str) -> bool:
    """Whether the URI is a path or of a scheme that is read here."""
    return "://" not in uri or is_remote(uri)


def join(base: str, *parts: str) -> str:
    """`base` with parts appended, separated by single slashes."""
    return "/".join([base.rstrip("/") if base != "/" else "", *parts]) if parts else base


def absolute(uri: str) -> str:
    """The URI as another process must be given it: local paths become absolute, `file://` is taken off.

    Raises InputError for a scheme other than s3, gs and file.
    """
    if is_remote(uri):
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    elif "://" in uri:
        raise InputError(f"{uri} has a scheme this project does not read; use a path, s3:// or gs://")
    return os.path.abspath(os.path.expanduser(uri))


def _nearest(path: str) -> Path:
    """The local path, or the first above it that there is."""
    return next(found for found in (Path(path), *Path(path).parents) if found.exists())


@contextlib.contextmanager
def probe(path: str) -> Iterator[str]:
    """An empty local file in the folder or the nearest one above that exists, for others to look for; where nothing may
    be written, what is there itself."""
    there = _nearest(path)
    folder = there if there.is_dir() else there.parent
    marker = folder / f".{uuid.uuid4().hex}"
    try:
        marker.touch()
    except OSError:
        yield path if os.path.exists(path) else str(folder)
        return
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)


def read(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none, OSError for any other trouble."""
    data, _ = objectstore.get(uri) if is_remote(uri) else fetch(uri, sys.maxsize - 1)
    assert data is not None, "no limit was given"
    return data


def copy(uri: str, path: Path) -> None:
    """Copies the object to a local file, in bounded memory. Raises as `read` does."""
    if is_remote(uri):
        objectstore.download(uri, path)
    else:
        shutil.copyfile(uri, path)


def fetch(uri: str, max_bytes: int) -> tuple[bytes | None, Entry]:
    """The object, and what a listing would say of it; None for one of more than `max_bytes`, which is not fetched.

    Raises as `read` does.
    """
    if is_remote(uri):
        return objectstore.get(uri, max_bytes)
    number = os.open(uri, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe would wait for its writer
    found = os.fstat(number)
    if not stat.S_ISREG(found.st_mode):
        os.close(number)
        kind = errno.EISDIR if stat.S_ISDIR(found.st_mode) else errno.EINVAL
        raise OSError(kind, os.strerror(kind) if kind == errno.EISDIR else "not a regular file", uri)
    with open(number, "rb") as file:
        data = file.read(min(found.st_size, max_bytes) + 1)  # of what it asks for, Python allocates all
        return (None if len(data) > max_bytes else data), _entry(uri, found)


def write(uri: str, data: bytes | memoryview, *, exclusive: bool = False) -> None:
    """Writes the whole object at once, making local folders as needed.

    Raises FileExistsError where `exclusive` is set and there is one already, OSError for any other trouble.
    """
    if is_remote(uri):
        objectstore.put(uri, bytes(data), exclusive=exclusive)
        return
    path = Path(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, "a file stands where a folder is needed", str(path.parent)) from None
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data)
        if exclusive:
            with temporary.open("rb") as file:  # what is claimed by its name must be there when the power fails
                os.fsync(file.fileno())
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def compare_and_swap(uri: str, data: bytes, expected: bytes) -> bool:
    """Writes the whole object if it holds what is expected; whether it did. Of several at once, one succeeds.

    On a disk among the processes of all machines that see its locks, on a store where it knows conditional writes.
    Raises FileNotFoundError where there is no object, OSError for any other trouble.
    """
    if is_remote(uri):
        return objectstore.compare_and_swap(uri, data, expected)
    folder = os.open(os.path.dirname(uri), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if Path(uri).read_bytes() != expected:
            return False
        write(uri, data)
        return True
    finally:
        os.close(folder)  # and with it the lock


def exists(uri: str) -> bool:
    """Whether there is an object (or a local file) of that name."""
    return objectstore.head(uri) is not None if is_remote(uri) else Path(uri).is_file()


def check_writable(uri: str) -> None:
    """Writes and removes an empty object below a prefix, or in a folder or what there is of its parents. Raises
    InputError where that is refused."""
    marker = join(uri if is_remote(uri) else str(_nearest(uri)), f".{uuid.uuid4().hex}")
    try:
        write(marker, b"")
        delete(marker)
    except OSError as error:
        raise InputError(f"{uri} cannot be written: {error.strerror or error}") from error


def delete(uri: str) -> None:
    """Removes one object; no error where there is none."""
    if is_remote(uri):
        objectstore.delete(uri)
    else:
        Path(uri).unlink(missing_ok=True)


def list_pages(uri: str) -> Iterator[list[Entry]]:
    """All objects below a folder or prefix, or the one file itself, a thousand at a time; in no order on S3.

    Local symbolic links are followed, but not in circles. Holds no more than a few pages. Raises InputError where a
    local folder is absent or cannot be listed, OSError where a store refuses.
    """
    if is_remote(uri):
        found = False
        try:
            for page in bucket_listing.list_pages(uri):
                found = found or bool(page)
                yield page
        except FileNotFoundError as error:
            raise InputError(str(error)) from None
        if not found and objectstore.split(uri)[1] and (entry := objectstore.head(uri)):
            yield [entry]
        return
    page = []
    for path in list_files(uri):
        try:
            page.append(_entry(path, os.stat(path)))
        except OSError:  # gone since, or a link to nowhere: still an object that was asked for
            page.append(Entry(path, "", 0, datetime.datetime.fromtimestamp(0, datetime.UTC)))
        if len(page) == PAGE_FILES:
            yield page
            page = []
    if page:
        yield page


def _entry(path: str, found: os.stat_result) -> Entry:
    """etag: of size and time of the last change, as far as the disk tells them apart."""
    modified = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
    return Entry(path, f"{found.st_mtime_ns:x}-{found.st_size:x}", found.st_size, modified)


def list_files(uri: str) -> Iterator[str]:
    """URIs of all objects that `list_pages` gives, in sorted order; those of a bucket are held in memory for it."""
    if is_remote(uri):
        yield from sorted(entry.uri for page in list_pages(uri) for entry in page)
        return
    path = Path(uri)
    if path.is_file():
        yield str(path)
        return
    if not path.is_dir():
        raise InputError(f"{uri} does not exist")
    yield from _walk(str(path))


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """above: real paths of the folders this one is in: links in a circle end, and those to a folder above the first one
    lead to what was not asked for."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    inside = above | {os.path.realpath(folder)}
    for entry in entries:
        if not entry.is_dir():
            yield entry.path
        elif not any(f"{known}/".startswith(f"{os.path.realpath(entry.path)}/") for known in inside):
            yield from _walk(entry.path, inside)


def is_empty(uri: str) -> bool:
    """Whether nothing stands below a folder or prefix; an absent one is empty."""
    if not is_remote(uri) and not os.path.exists(uri):
        return True
    return not any(list_pages(uri))


def prune(uri: str) -> None:
    """Removes a local folder and those below it as far as they are empty; in a bucket there are no folders."""
    if not is_remote(uri):
        for folder, _, _ in os.walk(uri, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
