"""Configure `infer`; the docstring under a field is its `--help`."""

import dataclasses
import re
from typing import Annotated, Literal

from captcha_ray.config import DEMO, NOT_NEGATIVE, POSITIVE, SHARE, Config, at_least
from captcha_ray.engines.engine import Name, Precision
from captcha_ray.errors import InputError, check
from captcha_ray.images.spec import MAX_PIXELS_LIMIT
from captcha_ray.models.restriction import Restriction


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig(Config):
    """Recognize whatever is new below a folder or in a bucket, and append a row per object to a Parquet table."""

    images: str = f"{DEMO}/corpus/text5"
    """Folder, s3://, gs:// or az:// URI, single image, or a listing: a .csv, .tsv, .jsonl or .parquet table of URIs or
    paths, perhaps gzipped, or the manifest.json of an S3 inventory. With --date it holds {date:FORMAT}, as in
    s3://scans/{date:%Y/%m/%d}, with FORMAT in the words of strftime."""
    run: str = f"{DEMO}/runs/text5"
    """Run or checkpoint folder or s3:// URI of the network, or builtin for the one that comes with the package. The
    default one is trained on first use."""
    charset: str = ""
    """Characters that texts may hold, of those that the network knows. Default: all of them."""
    length: Annotated[int, NOT_NEGATIVE] = 0
    """Characters of every text; 0 for as many as the network finds."""
    out: str = f"{DEMO}/predictions"
    """Folder or s3:// URI of the table; rows are only ever added to it."""
    skip: Literal["same-model", "any-model", "never"] = "same-model"
    """Skip objects that are done: unchanged ones that this model has recognized, that any model has, or none."""
    retry_errors: bool = False
    """Try only the objects again whose row of this model is an error and that have not changed since; the new row
    stands beside the old one."""
    date: str = ""
    """Days whose images are listed: today, yesterday, 2026-11-20, or 2026-11-20..yesterday with both ends, in the time
    zone of this machine. Days without images are passed over. Default: --images holds no date."""
    since: str = ""
    """Pass over objects that were last modified before a date or time, such as 2026-11-20 or 2026-11-20T03:00, in the
    time zone of this machine if it names none; or before the job of a run of the table, such as 000031, began, less an
    hour for clocks that differ. Default: none."""
    start_after: str = ""
    """Pass over objects up to this URI, key in the bucket or path below the folder, in the order of their bytes; in a
    bucket they are not even listed. Default: none."""
    match: str = ""
    """Regular expression that must be found in an object's URI; others are passed over. Default: all are taken."""
    date_pattern: str = ""
    """Regular expression with groups year, month, day, searched in the URI; partitions the table by date=YYYY-MM-DD."""
    max_error_fraction: Annotated[float, SHARE] = 0.5
    """Fraction of the objects that may fail; above it the job stops and commits nothing more. With --retry-errors all
    may."""
    min_objects_to_judge: Annotated[int, at_least(1)] = 20
    """With fewer objects than this, files that are no images do not stop the job; a store that refuses does."""
    stall_timeout_s: Annotated[float, POSITIVE] = 600.0
    """Seconds without any progress after which the job fails."""
    endpoint_url: str = ""
    """Address of an S3-compatible store, such as http://127.0.0.1:9000. Default: AWS_ENDPOINT_URL, else Amazon's."""
    objects_per_run: Annotated[int, POSITIVE] = 2_000_000
    """Rows that are committed at once, as one file of about 64 bytes a row; a longer night makes several runs."""
    max_bytes: Annotated[int, POSITIVE] = 4_000_000
    """Objects of more bytes than this are errors, and are not fetched."""
    max_pixels: Annotated[int, MAX_PIXELS_LIMIT] = 16_000_000
    """Images of more pixels than this are errors, and are not decoded."""
    max_stretch: Annotated[float, at_least(1)] = 4.0
    """Images whose ratio of width to height lies by more than this factor outside of those that the network was
    trained on are errors."""
    min_confidence: Annotated[float, SHARE] = 0.0
    """Predictions of less confidence, 0 to 1, get the status uncertain; the report names one for 99.9 % precision. Rows
    that the table holds already stay as they are."""
    num_workers: Annotated[int, NOT_NEGATIVE] = 0
    """Workers that recognize; 0 for one per CPU, or one per GPU with --use-gpu. With 0 and without a cluster, the job
    begins by itself. It starts Ray once more than six seconds of work are left; on two cores for more than 100,000
    images alone, on one never."""
    num_decoders: Annotated[int, at_least(-1)] = -1
    """CPUs that fetch and decode for workers that only recognize, if so many are left. 0: the workers do it themselves.
    -1: with --use-gpu all CPUs that are left, else 0."""
    cpus_per_worker: Annotated[int, POSITIVE] = 1
    """CPU cores each worker reserves; more than one decode side by side."""
    use_gpu: bool = False
    """Reserve one GPU per worker and recognize on it."""
    engine: Name = "auto"
    """Compute with openvino, onnxruntime, torch, or auto: OpenVINO on CPUs and torch with --use-gpu."""
    precision: Precision = "auto"
    """Compute in int8, bf16, fp32, or auto: the fastest on a worker's CPU or GPU that loses nothing. The network's
    model.json says what each recognizes."""
    price_per_core_hour: Annotated[float, NOT_NEGATIVE] = 0.04
    """Price of one core for one hour, in any currency, for the cost per million images in the run's manifest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(all((self.images, self.run, self.out)), "images, run and out must each name a folder or a URI")
        for name in ("match", "date_pattern"):
            try:
                groups = re.compile(getattr(self, name)).groups
            except re.error as error:
                raise InputError(f"{name} is {getattr(self, name)!r}; it is no regular expression: {error}") from None
        check(
            not self.date_pattern or groups == 3,
            f"date_pattern is {self.date_pattern!r}; it must have three groups: year, month and day",
        )
        check(
            not self.use_gpu or self.engine in ("auto", "torch"),
            f"engine is {self.engine}; with --use-gpu it must be torch",
        )
        check(not (self.retry_errors and self.skip != "same-model"), "--retry-errors and --skip exclude each other")
        check(
            not self.endpoint_url or self.endpoint_url.startswith(("http://", "https://")),
            f"endpoint_url is {self.endpoint_url!r}; it must start with http:// or https://",
        )
        check("@" not in self.endpoint_url, "endpoint_url must hold no credentials; they belong in the environment")

    @property
    def restriction(self) -> Restriction:
        """Return what is known of all texts."""
        return Restriction(self.charset, self.length)
