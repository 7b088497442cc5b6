"""Say which objects a night looks at: where they lie, perhaps by date, and which are passed over unseen.

Resolves words such as `today`; lists nothing.
"""

import dataclasses
import datetime
import functools
import json
import re

from captcha_ray.errors import InputError, check
from captcha_ray.inference.config import InferConfig
from captcha_ray.predictions.table import Run
from captcha_ray.storage import filesystem

DATED = re.compile(r"\{date:([^{}]+)\}")
"""Stands in --images for a date, in the words of strftime."""

CLOCKS_DIFFER = datetime.timedelta(hours=1)
"""Time before a run in which objects are looked at again, as a store's clock may differ from a job's."""

MAX_DAYS = 3660
"""Most days of a range."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Names what is listed, and what of it is kept.

    uris: absolute, of folders, prefixes, images or a table. match: regular expression that is found in each URI kept.
    since: objects that were last modified before are passed over. start_after: so are those whose URI is not greater,
    by its bytes; "" for none.
    """

    uris: tuple[str, ...]
    match: str = ""
    since: datetime.datetime | None = None
    start_after: str = ""

    @property
    def shared(self) -> str:
        """Return the folder or prefix that holds all of the uris."""
        first, *others = self.uris
        while not all(f"{uri}/".startswith(f"{first}/") for uri in others):
            first = first.rpartition("/")[0]
        return first

    def describe_nothing(self) -> str:
        """Return a sentence for a source without objects."""
        where = " and ".join(dict.fromkeys((self.uris[0], self.uris[-1])))
        between = f"none of the {len(self.uris)} folders between " if len(self.uris) > 2 else ""
        after = f" after {self.start_after!r}" if self.start_after else ""
        matching = f" that match {self.match!r}" if self.match else ""
        return f"{between}{where} {'hold' if len(self.uris) == 2 else 'holds'} no objects{after}{matching}"


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
    since = _since(config.since, filesystem.absolute(config.out)) if config.since else None
    absolute = tuple(dict.fromkeys(map(filesystem.absolute, uris)))
    return Source(absolute, config.match, since, _start(config.start_after, absolute[0]))


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


def _since(text: str, out: str) -> datetime.datetime:
    """Return the time that a date, a time or the id of a run stands for; that of a run is when its job began."""
    if run := Run.of_id(text):
        manifest = filesystem.join(out, run.folder, "_manifest.json")
        try:
            said = json.loads(filesystem.read(manifest))
        except FileNotFoundError:
            raise InputError(f"since is {text!r}; the table {out} has no such run") from None
        ended = datetime.datetime.fromisoformat(said["committed_at"])
        return ended - datetime.timedelta(seconds=said["seconds"]["wall"]) - CLOCKS_DIFFER
    try:
        return datetime.datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise InputError(
            f"since is {text!r}; it must be a date or time, as 2026-11-20T03:00, or a run of the table, as 000031"
        ) from None


def _start(text: str, images: str) -> str:
    """Return the URI of an object that is named by it, by its key in a bucket, or by its path below a folder."""
    if not text or filesystem.is_remote(text):
        return text
    if filesystem.is_remote(images):
        return filesystem.join("/".join(images.split("/")[:3]), text)
    return text if text.startswith("/") else filesystem.join(images, text)
