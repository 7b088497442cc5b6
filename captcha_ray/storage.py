"""Bytes behind a URI: a local path, `s3://bucket/key` or `gs://bucket/key`. The one place that knows clients.

Credentials and endpoints come from the environment or the machine's role (`AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `GOOGLE_APPLICATION_CREDENTIALS`, ...), never from here.
Local files are read with the standard library, object stores with obstore. Every write is atomic: a reader sees the
old bytes or the new. Does not cache, does not retry beyond what the client does.
"""

import contextlib
import errno
import functools
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import from_url

from captcha_ray.config import InputError

REMOTE = ("s3://", "gs://")


class StoreError(OSError, InputError):
    """What an object store refuses. Caught as OSError it costs a row; left alone it ends a job as bad input does."""


def is_remote(uri: str) -> bool:
    """Whether the URI names an object store."""
    return uri.startswith(REMOTE)


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


@functools.cache
def _store(bucket_uri: str) -> Any:
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")  # obstore refuses it unless told
    return from_url(bucket_uri, client_options={"allow_http": True} if plain else None)


def _locate(uri: str) -> tuple[Any, str]:
    """(client, key) of a remote URI."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise InputError(f"{uri} names no bucket")
    return _store(f"{scheme}://{bucket}"), key


@contextlib.contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Turns an object store's errors into the ones local files raise."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{uri} or its bucket does not exist") from None
    except (BaseError, ValueError) as error:  # ValueError: a key with an empty, `.` or `..` part or a control character
        raise StoreError(f"{uri}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """obstore's message on one line: without its debugging dump, of a store's XML answer what is meant for people."""
    text, _, answer = str(error).partition("Debug source")[0].partition("<?xml")
    said = re.findall("<(?:Code|Message)>([^<]*)", answer)
    return " ".join(" ".join([type(error).__name__ + ":", text, *said]).split())[:300]


def read(uri: str) -> bytes:
    """The whole object. Raises FileNotFoundError where there is none, OSError for any other trouble."""
    if not is_remote(uri):
        return Path(uri).read_bytes()
    client, key = _locate(uri)
    with _store_errors(uri):
        return bytes(obstore.get(client, key).bytes())


def write(uri: str, data: bytes | memoryview, *, exclusive: bool = False) -> None:
    """Writes the whole object at once, making local folders as needed.

    Raises FileExistsError where `exclusive` is set and there is one already, OSError for any other trouble.
    """
    if is_remote(uri):
        client, key = _locate(uri)
        # Stores that know conditional writes let one of two writers win. Others (rclone's server) ignore the condition
        # and overwrite; for them asking first refuses all but a writer that comes in the instant between.
        if exclusive and exists(uri):
            raise FileExistsError(f"{uri} exists")
        with _store_errors(uri):
            try:
                obstore.put(client, key, bytes(data), mode="create" if exclusive else "overwrite", use_multipart=False)
            except AlreadyExistsError:
                raise FileExistsError(f"{uri} exists") from None
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
            os.link(temporary, path)
        else:
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def exists(uri: str) -> bool:
    """Whether there is an object (or a local file) of that name."""
    if not is_remote(uri):
        return Path(uri).is_file()
    client, key = _locate(uri)
    try:
        with _store_errors(uri):
            obstore.head(client, key)
    except FileNotFoundError:
        return False
    return True


def delete(uri: str) -> None:
    """Removes one object; no error where there is none."""
    if not is_remote(uri):
        Path(uri).unlink(missing_ok=True)
        return
    client, key = _locate(uri)
    with _store_errors(uri), contextlib.suppress(FileNotFoundError):
        obstore.delete(client, key)


def list_files(uri: str) -> Iterator[str]:
    """URIs of all objects below a folder or prefix, or the one file itself; folders in sorted order.

    Local symbolic links are followed, but not in circles. Raises InputError where a local folder is absent
    or cannot be listed, OSError where a store refuses.
    """
    if is_remote(uri):
        client, prefix = _locate(uri)
        bucket = uri.partition("://")[2].partition("/")[0]
        root = f"{uri.partition('://')[0]}://{bucket}"
        found = False
        with _store_errors(uri):
            for page in obstore.list(client, prefix=f"{prefix.rstrip('/')}/" if prefix else None):
                for item in page:
                    found = True
                    if item["path"].endswith("/"):
                        continue  # the empty object by which some tools mark a folder
                    yield f"{root}/{item['path']}"
        if not found and prefix and exists(uri):
            yield uri
        return
    path = Path(uri)
    if path.is_file():
        yield str(path)
        return
    if not path.is_dir():
        raise InputError(f"{uri} does not exist")
    yield from _walk(str(path))


def _walk(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str]:
    """above: real paths of the folders this one is in, so that links in a circle end."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror}") from error
    inside = above | {os.path.realpath(folder)}
    for entry in entries:
        if not entry.is_dir():
            yield entry.path
        elif os.path.realpath(entry.path) not in inside:
            yield from _walk(entry.path, inside)


def is_empty(uri: str) -> bool:
    """Whether nothing stands below a folder or prefix; an absent one is empty."""
    if not is_remote(uri) and not os.path.exists(uri):
        return True
    return next(iter(list_files(uri)), None) is None
