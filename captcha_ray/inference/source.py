"""Say which objects a night looks at: where they lie, perhaps by date, and which are passed over unseen.

Resolves words such as `today`; lists nothing.
"""

import dataclasses
import datetime
import functools
import os
import re
from typing import Any

from captcha_ray.errors import InputError, check
from captcha_ray.inference.config import InferConfig
from captcha_ray.predictions.table import Run, read_manifest
from captcha_ray.storage import filesystem

DATED = re.compile(r"\{date:([^{}]+)\}")
"""Stands in --images for a date, in the words of strftime."""

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of files that list images, in lower case and perhaps followed by .gz, beside an inventory's manifest.
Anything else is an image, a folder or a prefix.
"""

MANIFEST = "/manifest.json"
"""Name of the file by which an Amazon S3 inventory says where its tables are and what their columns mean."""

CLOCKS_DIFFER = datetime.timedelta(hours=1)
"""Time before a run in which objects are looked at again, as a store's clock may differ from a job's."""

MAX_DAYS = 3660
"""Most days of a range."""


def is_table(images: str) -> bool:
    """Return whether the URI names a list of objects and not a folder or prefix that holds them."""
    return images.endswith(MANIFEST) or images.lower().removesuffix(".gz").endswith(TABLES)


@dataclasses.dataclass(frozen=True)
class Source:
    """Names what is listed, and what of it is kept.

    uris: absolute, of folders, prefixes, images or a table. match: regular expression that is found in each URI kept.
    since: objects that were last modified before are passed over. start_after: so are those whose URI is not greater,
    by its bytes; "" for none. is_dated: whether the uris are of dates, of which some may have no images.
    """

    uris: tuple[str, ...]
    match: str = ""
    since: datetime.datetime | None = None
    start_after: str = ""
    is_dated: bool = False

    @property
    def shared(self) -> str:
        """Return the folder that holds all of the uris, or the first one if they are not local."""
        return self.uris[0] if filesystem.is_remote(self.uris[0]) else os.path.commonpath(self.uris)

    @property
    def may_be_empty(self) -> bool:
        """Return whether a night without any object is an ordinary one."""
        return bool(self.is_dated or self.since or self.start_after)

    def describe_nothing(self) -> str:
        """Return a sentence for a source without objects."""
        after = f" after {self.start_after!r}" if self.start_after else ""
        matching = f" that match {self.match!r}" if self.match else ""
        if len(self.uris) == 1:
            return f"{self.uris[0]} holds no objects{after}{matching}"
        places = f"{len(self.uris)} places from {self.uris[0]} to {self.uris[-1]}"
        return f"none of the {places} holds objects{after}{matching}"


def resolve(config: InferConfig, today: datetime.date) -> Source:
    """Return the source that a config describes. today: in the time zone of whoever asks.

    Raises:
        InputError: A date, a run or a scheme is not known.
        OSError: The manifest of the run cannot be read.
    """
    found = DATED.findall(config.images)
    images = config.images
    check(
        bool(found) or not config.date,
        f"images is {images!r}, which has no place for --date {config.date}, such as {{date:%Y/%m/%d}}",
    )
    check(bool(config.date) or not found, f"images is {images!r}; --date must say which dates")
    days = _days(config.date, today) if config.date else [today]
    uris = [DATED.sub(functools.partial(_format, day), images) for day in days]
    absolute = tuple(dict.fromkeys(map(filesystem.absolute, uris)))
    check(len(absolute) == 1 or not is_table(absolute[0]), f"images is {images!r}; of tables only one can be listed")
    since = _since(config) if config.since else None
    start = _start(config.start_after, absolute[0]) if config.start_after else ""
    return Source(absolute, config.match, since, start, bool(config.date))


def _format(day: datetime.date, place: re.Match[str]) -> str:
    return day.strftime(place[1])


def _days(text: str, today: datetime.date) -> list[datetime.date]:
    """Return the days of `today`, `yesterday`, an ISO date, or a range of these, both ends included."""
    words = {"today": today, "yesterday": today - datetime.timedelta(1)}
    first, dots, last = text.partition("..")
    try:
        begin, end = (words.get(word) or datetime.date.fromisoformat(word) for word in (first, last if dots else first))
    except ValueError:
        raise InputError(
            f"date is {text!r}; it must be today, yesterday, a date as 2026-11-20, or a range as 2026-11-20..2026-11-24"
        ) from None
    number = (end - begin).days + 1
    check(0 < number <= MAX_DAYS, f"date is {text!r}; the range must hold 1 to {MAX_DAYS} days")
    return [begin + datetime.timedelta(k) for k in range(number)]


def _since(config: InferConfig) -> datetime.datetime:
    """Return the time that a date, a time or the id of a run stands for; that of a run is when its job began."""
    text = config.since
    if run := Run.of_id(text):
        return _begun(config, run)
    try:
        return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC)
    except (ValueError, OverflowError):
        raise InputError(
            f"since is {text!r}; it must be a date or time, as 2026-11-20T03:00, or a run of the table, as 000031"
        ) from None


def _begun(config: InferConfig, run: Run) -> datetime.datetime:
    """Return when the job of a run began, less `CLOCKS_DIFFER`."""
    out = filesystem.absolute(config.out)
    try:
        manifest = read_manifest(out, run)
    except FileNotFoundError:
        raise InputError(f"since is {config.since!r}; the table {out} has no such run") from None
    try:
        began = datetime.datetime.fromisoformat(manifest["committed_at"]).astimezone(datetime.UTC)
        began -= datetime.timedelta(seconds=manifest["seconds"]["wall"])
        before = _looked_at(manifest["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"since is {config.since!r}; the manifest of that run does not say when it began") from error
    same = before == _looked_at(config.to_dict())
    check(same, f"since is {config.since!r}, but that run's job looked at {before}; give a date instead")
    return began - CLOCKS_DIFFER


def _looked_at(config: dict[str, Any]) -> dict[str, str]:
    """Return the fields of a config that say what is listed, but for `since`."""
    names = ("images", "match", "date", "start_after")
    return {name: config[name] for name in names if config.get(name)}


def _start(text: str, images: str) -> str:
    """Return the URI that is given as one, as a key in a bucket, or as a path below a folder."""
    root = "/".join(images.split("/")[:3])
    if is_table(images):
        check(
            "://" in text or text.startswith("/"),
            f"start_after is {text!r}; with a table it must be a whole URI or path",
        )
        return filesystem.absolute(text)
    if "://" in text:
        text = filesystem.absolute(text)
    elif filesystem.is_remote(images):
        return filesystem.join(root, text)
    elif not text.startswith("/"):
        return filesystem.join(images, text)
    where = root if filesystem.is_remote(images) else ""
    check(text.startswith(f"{where}/"), f"start_after is {text!r}, which is not in {where or 'a local folder'}")
    return text
