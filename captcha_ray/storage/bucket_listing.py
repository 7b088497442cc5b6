"""List buckets page by page, several folders of S3 side by side."""

import concurrent.futures
import dataclasses
from collections import deque
from collections.abc import Iterator
from typing import Any

import obstore

from captcha_ray.storage.objectstore import (
    NUM_LIST_THREADS,
    Entry,
    entry_of,
    s3_client,
    split,
    store_client,
)
from captcha_ray.storage.retries import persist, store_errors

MAX_FOLDERS = 256
"""Most folders of a bucket that are listed side by side. Once so many are known, deeper ones are not looked for."""


def list_pages(uri: str, start_after: str = "") -> Iterator[list[Entry]]:
    """Yield all objects below a prefix in pages of at most a thousand, in no order.

    Folders of S3 are listed side by side. Empty objects that mark a folder are left out. Only a few pages are held in
    memory. Of objects whose URI is not greater than `start_after`, a store is asked for as few as it allows.
    """
    root, prefix = split(uri)
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    start = start_after.removeprefix(f"{root}/") if start_after.startswith(f"{root}/") else ""
    pages = _list_s3(root, prefix, start) if root.startswith("s3://") else _list_stream(root, prefix, start)
    for page in pages:
        yield [entry for entry in page if not (entry.uri.endswith("/") and entry.size == 0)]


def _list_stream(root: str, prefix: str, start: str) -> Iterator[list[Entry]]:
    with store_errors(f"{root}/{prefix}"):
        store = store_client(root, retried=True)
        for page in obstore.list(store, prefix=prefix or None, offset=start or None, chunk_size=1000):
            yield [entry_of(f"{root}/{item['path']}", item) for item in page]


@dataclasses.dataclass(frozen=True)
class _Page:
    """A page to request. delimited: of the folder itself only, with its subfolders' names."""

    prefix: str
    delimited: bool
    token: str | None = None


def _list_s3(root: str, prefix: str, start: str) -> Iterator[list[Entry]]:
    waiting = deque([_Page(prefix, delimited=True)])
    requested: set[concurrent.futures.Future[tuple[_Page, dict[str, Any]]]] = set()
    num_folders = 1
    with concurrent.futures.ThreadPoolExecutor(NUM_LIST_THREADS) as pool:
        while waiting or requested:
            while waiting and len(requested) < NUM_LIST_THREADS:
                requested.add(pool.submit(_ask, root, waiting.popleft(), start))
            done, requested = concurrent.futures.wait(requested, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                page, answer = future.result()
                if page.delimited and answer["IsTruncated"]:
                    # Thousands of names in one folder: maybe a thousand folders of one object each. Start over, flat.
                    waiting.append(_Page(page.prefix, delimited=False))
                    continue
                names = [folder["Prefix"] for folder in answer.get("CommonPrefixes", [])]
                folders = [name for name in names if name > start or start.startswith(name)]
                num_folders += len(folders)
                waiting.extend(_Page(folder, delimited=num_folders < MAX_FOLDERS) for folder in folders)
                if answer["IsTruncated"]:
                    waiting.appendleft(dataclasses.replace(page, token=answer["NextContinuationToken"]))
                yield [
                    Entry(f"{root}/{item['Key']}", item.get("ETag", "").strip('"'), item["Size"], item["LastModified"])
                    for item in answer.get("Contents", [])
                ]


def _ask(root: str, page: _Page, start: str) -> tuple[_Page, dict[str, Any]]:
    arguments = {"Bucket": root.removeprefix("s3://"), "Prefix": page.prefix}
    if page.delimited:
        arguments["Delimiter"] = "/"
    if page.token:
        arguments["ContinuationToken"] = page.token
    elif start and not (page.delimited and "/" in start.removeprefix(page.prefix)):
        # With a delimiter, servers leave out the folder that the start lies in.
        arguments["StartAfter"] = start
    answer: dict[str, Any] = persist(lambda: s3_client(root).list_objects_v2(**arguments), f"{root}/{page.prefix}")
    return page, answer
