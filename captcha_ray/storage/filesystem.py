"""Read and write bytes behind a URI: a local path, or `s3://bucket/key`, `gs://bucket/key` or `az://container/key`.

Every write is atomic: a reader sees the old bytes or the new. Nothing is cached. Local files are read with the standard
library, object stores through `objectstore`. Credentials and endpoints come from the environment, a profile or the
machine's role (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_PROFILE`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY`, ...).
"""

import contextlib
import datetime
import errno
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

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

REMOTE = ("s3://", "gs://", "az://", "abfss://")

PAGE_FILES = 1000
"""Local files per page of a listing, as many as S3 gives."""


HIDDEN_FILES = {"icon\r", "_success", "_metadata", "_common_metadata", "picasa.ini", "zbthumbnail.info"}
"""Name, in lower case, files that operating systems and programs leave in folders; others begin with a dot."""

HIDDEN_STARTS = ("thumbs.db", "ehthumbs", "desktop.ini", "~$", "_committed_", "_started_")
"""Begin the names, in lower case, of such files: previews of Windows, marks of Databricks."""

HIDDEN_ENDINGS = (
    "zone.identifier", "@synoeastream", "@synoresource", "_$folder$", "~", ".crc", ".crdownload", ".part", ".partial",
    ".tmp",
)  # fmt: skip
"""End the names, in lower case, of such files: downloads and what marks them, streams of Synology, backups, folders
and checksums of Hadoop.
"""

HIDDEN_FOLDERS = {
    "__macosx", "network trash folder", "temporary items",  # macOS
    "$recycle.bin", "recycler", "recycled", "recycle bin", "system volume information",
    *(f"found.{k:03}" for k in range(100)),  # Windows
    "lost+found",  # Linux
    "@eadir", "#recycle", "#snapshot", "~snapshot", "@recycle", "@recently-snapshot", "@tmp",  # network drives
    "_temporary", "_delta_log", "_spark_metadata",  # Hadoop, Delta, Spark
}  # fmt: skip
"""Name, in lower case, folders that they leave; all that is in them is theirs."""


def speakable(uri: str) -> str:
    """Return the URI with bytes that are not UTF-8 escaped, as tables and terminals hold UTF-8 only."""
    return uri.encode("utf-8", "backslashreplace").decode()


def is_hidden(uri: str, corpus: str) -> bool:
    """Return whether a file is hidden below the corpus, or is an operating system's or a program's."""
    below = f"/{uri.removeprefix(corpus).lstrip('/').lower()}"
    name = below.rpartition("/")[2] or uri.rpartition("/")[2].lower()
    if name in HIDDEN_FILES or name.startswith(HIDDEN_STARTS) or name.endswith(HIDDEN_ENDINGS):
        return True
    folders = below.split("/")
    hidden = "/." in below and any(part.startswith(".") and part not in (".", "..") for part in folders)
    return hidden or name.startswith(".") or not HIDDEN_FOLDERS.isdisjoint(folders[:-1])


def is_remote(uri: str) -> bool:
    """Return whether the URI names an object store."""
    return uri.startswith(REMOTE)


def is_known(uri: str) -> bool:
    """Return whether the URI is a path or has a scheme that this module reads."""
    return "://" not in uri or is_remote(uri)


def join(base: str, *parts: str) -> str:
    """Return `base` with parts appended, separated by single slashes."""
    return "/".join([base.rstrip("/") if base != "/" else "", *parts]) if parts else base


def absolute(uri: str) -> str:
    """Return the URI as another process needs it: local paths absolute, without `file://`.

    Raises:
        InputError: The scheme is none of `REMOTE`, and not file.
    """
    if is_remote(uri):
        return uri.rstrip("/")
    if uri.startswith("file://"):
        uri = uri.removeprefix("file://")
    elif "://" in uri:
        raise InputError(f"{uri} has a scheme this project does not read; use a path, s3://, gs:// or az://")
    return os.path.abspath(os.path.expanduser(uri))


def _nearest(path: str) -> Path:
    """Return the local path, or its nearest parent that exists."""
    return next(found for found in (Path(path), *Path(path).parents) if found.exists())


@contextlib.contextmanager
def probe(path: str) -> Iterator[str]:
    """Yield the path of an empty file in the folder or its nearest parent that exists, for other nodes to look for.

    If nothing can be written there, yield the existing path itself.
    """
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
    """Return all bytes of the object. Raises FileNotFoundError if it is absent, OSError for other trouble."""
    data, _ = objectstore.get(uri) if is_remote(uri) else fetch(uri, sys.maxsize - 1)
    assert data is not None, "no limit was given"
    return data


def copy(uri: str, path: Path) -> None:
    """Copy the object to a local file, in bounded memory. Raises as `read` does."""
    if is_remote(uri):
        objectstore.download(uri, path)
    else:
        shutil.copyfile(uri, path)


def fetch(uri: str, max_bytes: int) -> tuple[bytes | None, Entry]:
    """Return the object's bytes and its entry in a listing; None instead of the bytes if they exceed `max_bytes`.

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
    """Write the whole object at once, and make local folders as needed.

    Args:
        uri: Of the object.
        data: Its new content.
        exclusive: Refuse to replace an object.

    Raises:
        FileExistsError: `exclusive` is set and the object exists.
        OSError: For other trouble.
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
    """Write the object if it still holds the expected bytes. Of several writers at once, one succeeds.

    This holds on a disk for processes that share its locks, and on a store that supports conditional writes.

    Returns:
        Whether it was written.

    Raises:
        FileNotFoundError: The object is absent.
        OSError: For other trouble.
    """
    if is_remote(uri):
        return objectstore.compare_and_swap(uri, data, expected)
    if fcntl is None:
        raise InputError(
            f"{uri} needs a lock on a local disk, which this system has not; use a bucket, or Linux or macOS"
        )
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
    """Return whether there is an object or a local file of that name."""
    return objectstore.head(uri) is not None if is_remote(uri) else Path(uri).is_file()


def check_writable(uri: str) -> None:
    """Write and remove an empty object below the prefix. Raises InputError if that is refused."""
    marker = join(uri if is_remote(uri) else str(_nearest(uri)), f".{uuid.uuid4().hex}")
    try:
        write(marker, b"")
        delete(marker)
    except OSError as error:
        raise InputError(f"{uri} cannot be written: {error.strerror or error}") from error


def delete(*uris: str) -> None:
    """Remove files, or objects of one bucket; absent ones are no error."""
    if uris and is_remote(uris[0]):
        objectstore.delete(*uris)
    else:
        for uri in uris:
            Path(uri).unlink(missing_ok=True)


def list_pages(uri: str, start_after: str = "") -> Iterator[list[Entry]]:
    """Yield all objects below a folder or prefix, or the one file, in pages of a thousand; in no order on S3.

    Objects of a bucket whose URI is not greater than `start_after` may be missing. Local symbolic links are followed,
    but not in circles. Only a few pages are held in memory.

    Raises:
        InputError: A local folder is absent or cannot be listed.
        OSError: A store refuses.
    """
    if is_remote(uri):
        found = False
        try:
            for page in bucket_listing.list_pages(uri, start_after):
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
    """Return a local file's entry; its etag is of size and time of the last change, in nanoseconds."""
    modified = datetime.datetime.fromtimestamp(found.st_mtime, datetime.UTC)
    return Entry(path, f"{found.st_mtime_ns:x}-{found.st_size:x}", found.st_size, modified)


def list_files(uri: str) -> Iterator[str]:
    """Return the URIs of all objects that `list_pages` yields, sorted; a bucket's are held in memory."""
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
    """Yield the files below a folder. above: real paths of its parents, so that circular links end."""
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
    """Return whether nothing stands below a folder or prefix; an absent one is empty."""
    if not is_remote(uri) and not os.path.exists(uri):
        return True
    return not any(list_pages(uri))


def prune(uri: str) -> None:
    """Remove a local folder and those below it if they are empty. Buckets have no folders."""
    if not is_remote(uri):
        for folder, _, _ in os.walk(uri, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
