"""Read and write objects in buckets of S3, Google and Azure. Knows credentials, but no local file.

`abfss://container@account.dfs.core.windows.net` names an account, `az://container` that of the environment.

Keys are data. obstore, the fast client, cannot name some keys that S3 allows (`a//b`, `..`, control characters); one of
them ends its listing of a bucket. S3 is therefore listed with botocore, which also reads those keys.
"""

import concurrent.futures
import contextlib
import datetime
import functools
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import botocore.session
import obstore
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
)
from obstore.exceptions import (
    AlreadyExistsError,
    PreconditionError,
)
from obstore.store import from_url

from captcha_ray.errors import InputError
from captcha_ray.storage.retries import DeniedError, StoreError, persist

T = TypeVar("T")

NUM_LIST_THREADS = 8
"""Pages of a bucket that are requested at once, from different folders."""

NUM_DELETE_THREADS = 8
"""Requests for removal at once."""

CONNECT_TIMEOUT_S, REQUEST_TIMEOUT_S, PATIENT_TIMEOUT_S = 5, 30, 900
"""Limits of one attempt with its body. An image takes less than a second, a table of 128 MB minutes on a slow line."""


class Entry(NamedTuple):
    """An object in a listing. etag: without quotes. size: bytes. last_modified: UTC."""

    uri: str
    etag: str
    size: int
    last_modified: datetime.datetime


def split(uri: str) -> tuple[str, str]:
    """Return the bucket's URI and the key of a URI. Raises InputError if it names no bucket."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise InputError(f"{uri} names no bucket")
    return f"{scheme}://{bucket}", key


def _split_named(uri: str) -> tuple[str, str]:
    """Return what `split` does. Raises StoreError for a key that obstore cannot name; no job writes such keys."""
    root, key = split(uri)
    if not _has_name(key):
        raise StoreError(
            f"{uri}: keys with empty, `.` or `..` parts or control characters are only read, never written"
        )
    return root, key


def get(uri: str, max_bytes: int | None = None) -> tuple[bytes | None, Entry]:
    """Return an object's bytes and entry; None instead of the bytes if they exceed `max_bytes`.

    Raises:
        FileNotFoundError: The object is absent.
        StoreError: The store refuses; DeniedError for lack of rights.
    """
    root, key = split(uri)

    def request() -> tuple[bytes | None, Entry]:
        if not _has_name(key):
            answer = s3_client(root).get_object(Bucket=root.removeprefix("s3://"), Key=key)
            with contextlib.closing(answer["Body"]) as body:
                entry = _entry_of_answer(uri, answer)
                return (None if max_bytes is not None and entry.size > max_bytes else body.read()), entry
        result = obstore.get(store_client(root, patient=max_bytes is None), key)
        entry = entry_of(uri, result.meta)
        return (None if max_bytes is not None and entry.size > max_bytes else bytes(result.bytes())), entry

    return persist(request, uri)


def get_range(uri: str, start: int, end: int) -> bytes:
    """Return the bytes of an object from `start` up to `end`. Raises as `get` does."""
    root, key = split(uri)

    def request() -> bytes:
        if not root.startswith("s3://"):
            return bytes(obstore.get_range(store_client(root, patient=True), key, start=start, end=end))
        # obstore refuses what rclone's server answers: the range, with the status of a whole object.
        wanted = f"bytes={start}-{end - 1}"
        answer = s3_client(root).get_object(Bucket=root.removeprefix("s3://"), Key=key, Range=wanted)
        with contextlib.closing(answer["Body"]) as body:
            data: bytes = body.read()
        data = data if "ContentRange" in answer else data[start:end]
        if len(data) != end - start:
            raise StoreError(f"{uri}: {len(data)} bytes came of the range {wanted}")
        return data

    return persist(request, uri)


def download(uri: str, path: Path) -> None:
    """Write the object to a local file, in bounded memory. Raises as `get` does."""
    root, key = _split_named(uri)

    def request() -> None:
        with path.open("wb") as file:
            for chunk in obstore.get(store_client(root, patient=True), key):
                file.write(chunk)

    persist(request, uri)


def put(uri: str, data: bytes, *, exclusive: bool = False) -> None:
    """Write the whole object. Raises FileExistsError if `exclusive` is set and the object exists."""
    root, key = _split_named(uri)
    # Stores that know conditional writes let one of two writers win. Others (rclone's server) ignore the condition and
    # overwrite; for them asking first refuses all but a writer that comes in the instant between.
    if exclusive and head(uri):
        raise FileExistsError(f"{uri} exists")
    attempts = 0

    def request() -> None:
        nonlocal attempts
        attempts += 1
        try:
            obstore.put(
                store_client(root, patient=True),
                key,
                data,
                mode="create" if exclusive else "overwrite",
                use_multipart=False,
            )
        except AlreadyExistsError:
            if attempts == 1 or get(uri)[0] != data:  # an attempt whose answer was lost may have written it
                raise FileExistsError(f"{uri} exists") from None

    persist(request, uri)


def compare_and_swap(uri: str, data: bytes, expected: bytes) -> bool:
    """Write the object if it holds the expected bytes, and return whether it did.

    Raises FileNotFoundError if it is absent.

    With stores that support conditional writes one of several writers wins; with others the last one.
    """
    root, key = _split_named(uri)

    def request() -> bool:
        found = obstore.get(store_client(root), key)
        if bytes(found.bytes()) != expected:
            return False
        with contextlib.suppress(PreconditionError):
            obstore.put(store_client(root), key, data, mode={"e_tag": found.meta["e_tag"]}, use_multipart=False)
            return True
        return bytes(obstore.get(store_client(root), key).bytes()) == data  # an attempt whose answer was lost

    return persist(request, uri)


def head(uri: str) -> Entry | None:
    """Return the entry of an object; None if it is absent."""
    root, key = split(uri)

    def request() -> Entry:
        if _has_name(key):
            return entry_of(uri, obstore.head(store_client(root), key))
        return _entry_of_answer(uri, s3_client(root).head_object(Bucket=root.removeprefix("s3://"), Key=key))

    try:
        return persist(request, uri)
    except FileNotFoundError:
        return None
    except DeniedError:
        with contextlib.suppress(FileNotFoundError):
            get(uri, max_bytes=0)  # the answer to a HEAD has no body that says why: rights, or a clock that is off
        raise


def delete(*uris: str) -> None:
    """Remove objects of one bucket, of S3 a thousand by a request, of others side by side; absent ones are no error."""
    names = [_split_named(uri) for uri in uris]
    at_once = 1000 if uris and uris[0].startswith("s3://") else 1

    def remove(start: int) -> None:
        keys = [key for _, key in names[start : start + at_once]]
        with contextlib.suppress(FileNotFoundError):
            persist(lambda: obstore.delete(store_client(names[0][0]), keys), uris[start])

    with concurrent.futures.ThreadPoolExecutor(NUM_DELETE_THREADS) as pool:
        list(pool.map(remove, range(0, len(names), at_once)))


def entry_of(uri: str, meta: Any) -> Entry:
    """Return the entry of an object from obstore's metadata."""
    return Entry(uri, (meta["e_tag"] or "").removeprefix("W/").strip('"'), meta["size"], meta["last_modified"])


def _entry_of_answer(uri: str, answer: dict[str, Any]) -> Entry:
    return Entry(uri, answer.get("ETag", "").strip('"'), answer["ContentLength"], answer["LastModified"])


def _has_name(key: str) -> bool:
    """Return whether obstore can name the key: it drops or refuses empty, `.` and `..` parts and control characters."""
    parts = key.split("/")
    return not (any(part in ("", ".", "..") for part in parts) or any(c < " " or c == "\x7f" for c in key))


def use_endpoint(url: str) -> None:
    """Send `s3://` requests of this process and its children to another store than Amazon's.

    Nothing is done where they are sent there already, as other threads may be using the clients.
    """
    if os.environ.get("AWS_ENDPOINT_URL") == url and "AWS_ENDPOINT_URL_S3" not in os.environ:
        return
    os.environ["AWS_ENDPOINT_URL"] = url
    os.environ.pop("AWS_ENDPOINT_URL_S3", None)
    forget_clients()


def endpoint() -> str:
    """Return the address of the store for `s3://` from the environment or a profile; "" for Amazon's."""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or _profile_endpoint()


@functools.cache
def _profile_endpoint() -> str:
    try:
        return str(botocore.session.Session().get_scoped_config().get("endpoint_url", ""))
    except BotoCoreError:  # said by the first request
        return ""


def forget_clients() -> None:
    """Let the next request read the environment again."""
    _profile_endpoint.cache_clear()
    store_client.cache_clear()
    s3_client.cache_clear()


@functools.cache
def store_client(root: str, patient: bool = False, retried: bool = False) -> Any:
    """Return a client of a bucket. patient: for large objects. retried: by obstore itself, as listings' pages are."""
    address = endpoint() if root.startswith("s3://") else os.environ.get("AZURE_STORAGE_ENDPOINT", "")
    plain = address.startswith("http://")  # obstore refuses it unless told
    return from_url(
        root,
        client_options={
            "timeout": f"{PATIENT_TIMEOUT_S if patient else REQUEST_TIMEOUT_S}s",
            "connect_timeout": f"{CONNECT_TIMEOUT_S}s",
            "allow_http": plain,
        },
        retry_config=None if retried else {"max_retries": 0},  # `persist` does it, with jitter from the first wait on
        **(_amazon(root) if root.startswith("s3://") else {}),
    )


def _anonymous() -> bool:
    return os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true")


def _amazon(root: str) -> dict[str, Any]:
    """Return region and credentials for obstore, which knows no profiles, as botocore finds them."""
    session = botocore.session.Session()
    region = os.environ.get("AWS_REGION") or session.get_config_variable("region")
    options: dict[str, Any] = {"region": region} if region else {}
    if endpoint():
        options["endpoint"] = endpoint()  # obstore knows that of the environment, and no profile's
    if _anonymous():
        return options
    found = session.get_credentials()
    if found is None:
        raise DeniedError(f"{root}: there are no credentials in the environment, a profile or the machine's role")

    def current() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=10),
        }

    return {**options, "credential_provider": current}


@functools.cache
def s3_client(root: str) -> Any:
    """Return botocore's client of a bucket. Raises StoreError for a store other than S3."""
    if not root.startswith("s3://"):
        raise StoreError(f"{root}: keys with empty, `.` or `..` parts or control characters are read on S3 only")
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=REQUEST_TIMEOUT_S,
        max_pool_connections=4 * NUM_LIST_THREADS,
        retries={"total_max_attempts": 1},
        signature_version=UNSIGNED if _anonymous() else None,
        s3={"addressing_style": "path"} if endpoint() else None,  # as obstore does
    )
    session = botocore.session.Session()
    return session.create_client("s3", region_name=os.environ.get("AWS_REGION") or None, config=config)
