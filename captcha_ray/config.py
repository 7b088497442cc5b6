"""What each job may be told: one frozen dataclass a job, the docstring under a field is its `--help`.

Checks what can be checked without looking at any data. Does not read files, does not know Ray or torch.
"""

import dataclasses
import difflib
import json
import math
import re
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

Labels = Literal["folder", "filename", "table"]
Network = Literal["auto", "glyph_vgg", "multi_head_cnn", "column_cnn"]
Optimizer = Literal["sgd", "rmsprop", "adam", "adamw"]
Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["constant", "one_cycle", "warmup_stable_decay"]
Scheduler = Literal["asha", "none"]
Search = Literal["optuna", "random", "grid"]

DEMO = "demo"
"""Folder, relative to where a job is started, in which jobs without arguments keep what they make."""


MAX_MAX_PIXELS = 178_956_970
"""Pixels above which Pillow refuses an image whatever it is told: twice its `MAX_IMAGE_PIXELS`."""


AGAIN = "the same command goes on (a training: with --resume)"
"""What to do where work was cut short."""


class InputError(Exception):
    """Something only the user can mend, said in one sentence. Jobs print it and exit with status 2."""


def check(ok: bool, sentence: str) -> None:
    """Raises InputError(sentence) unless `ok`."""
    if not ok:
        raise InputError(sentence)


def check_keys(given: list[str], known: list[str], what: str) -> None:
    """Raises InputError for the first unknown key, naming the nearest known one."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"unknown {what} {key!r}; {hint}")


def check_label_rule(labels: Labels, pattern: str, table: str) -> None:
    """Raises InputError where the three do not fit together or the pattern is no regular expression."""
    check((labels == "table") == bool(table), f"labels is {labels!r} and table is {table!r}; --table goes with 'table'")
    check(
        not pattern or labels == "filename",
        f"labels is {labels!r} and label_pattern is {pattern!r}; --label-pattern goes with 'filename'",
    )
    try:
        re.compile(pattern)
    except re.error as error:
        raise InputError(f"label_pattern is {pattern!r}; it is not a regular expression: {error}") from None


class FailedError(Exception):
    """Something that went wrong and can be said in one sentence. Jobs print it and exit with status 1."""


class Config:
    """JSON both ways for the dataclasses below, and a check of the fields that take one of a few words."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            if get_origin(kind) is Literal:
                value, words = getattr(self, name), get_args(kind)
                check(value in words, f"{name} is {value!r}; it must be one of {', '.join(words)}")

    def _check_at_least(self, least: int, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            check(value >= least, f"{name} is {value}; it must be at least {least}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types; tuples become lists."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[call-overload, no-any-return]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. Raises InputError for a field that is unknown, naming the nearest, or missing."""
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        check_keys(list(values), known, f"field of {cls.__name__}")
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            lacks = field.default is dataclasses.MISSING and field.name not in values
            check(not lacks, f"the field {field.name!r} of {cls.__name__} is missing")
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSpec(Config):
    """The pixels a network reads. Part of a model's identity: training and reading must agree on it."""

    height: int
    """Height every image is resized to, pixels."""
    width: int
    """Width every image is resized to, pixels."""
    channels: int = 1
    """1 for gray, 3 for RGB."""
    denoise: int = 0
    """Side of the median filter, pixels, odd; 0 for none. Applied before resizing."""
    binarize: bool = False
    """Whether pixels become 0 or 255 by Otsu's threshold. Applied after resizing."""

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            check(4 <= value <= 4096, f"{name} is {value}; it must be 4 to 4096 pixels")
        check(self.channels in (1, 3), f"channels is {self.channels}; it must be 1 (gray) or 3 (RGB)")
        check(
            self.denoise == 0 or (self.denoise % 2 == 1 and 3 <= self.denoise <= 15),
            f"denoise is {self.denoise}; it must be 0 (off) or an odd side of 3 to 15 pixels",
        )
        check(not (self.binarize and self.channels == 3), "binarize needs gray images; use channels 1")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of one uint8 image."""
        return self.height, self.width, self.channels

    def __str__(self) -> str:
        denoised = f", denoised by {self.denoise}" if self.denoise else ""
        return f"{self.width}x{self.height}x{self.channels}{denoised}{', binarized' if self.binarize else ''}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SynthesizeConfig(Config):
    """Draws a seeded synthetic corpus, so that everything can be tried without a download."""

    scheme: Literal["digits", "text5", "lines4", "lines4-small", "bits5", "color-digits"] = "digits"
    """What to draw, sizes as width x height. In folders 0 to 9: digits of 18x60, color-digits of 15x30. As <text>.png:
    text5, five characters in 200x50; lines4, four digits in colors with lines in 152x42; lines4-small, the same in
    70x30; bits5, five digits in one bit in 80x25."""
    num_images: int = 4000
    """How many images to draw."""
    seed: int = 0
    """The same seed draws the same files, whatever the number of workers."""
    out: str = ""
    """Folder or s3:// URI to write to; must be empty or absent. Default: demo/corpus/<scheme>."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "num_images")
        self._check_at_least(0, "seed")
        if not self.out:
            object.__setattr__(self, "out", f"{DEMO}/corpus/{self.scheme}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreprocessConfig(Config):
    """Turns a corpus of labeled images into shards, a quarantine and a manifest."""

    corpus: str = f"{DEMO}/corpus/digits"
    """Folder or s3:// URI of labeled images. The default one is drawn on first use."""
    labels: Labels = "folder"
    """Where a label stands: the parent folder's name, the file's name, or a table."""
    label_pattern: str = ""
    """Regular expression searched in the file's stem; its first group, or all it matches, is the label."""
    table: str = ""
    """CSV or Parquet with columns path,text (paths relative to the table), for --labels table."""
    height: int = 0
    """Height every image is resized to, pixels; 0 takes the corpus' own, the median of a sample, but 32 to 64."""
    width: int = 0
    """Width every image is resized to, pixels; 0 takes the corpus' own at that height."""
    channels: int = 0
    """1 for gray, 3 for RGB; 0 for RGB where a sample of the corpus is in color, else gray."""
    denoise: int = 0
    """Side of a median filter, pixels, odd; 0 for none."""
    binarize: bool = False
    """Make pixels 0 or 255 by Otsu's threshold."""
    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Fractions of the images for training, validation and test; they add up to 1."""
    split_seed: int = 0
    """Moves images between splits; the same seed and pixels always give the same split."""
    charset: str = ""
    """All characters that labels may hold, in order. Default: those found, sorted."""
    length: int = 0
    """Characters every label must have; 0 for any number."""
    bad_labels: Literal["quarantine", "refuse"] = "quarantine"
    """What to do with labels of unknown characters or of a wrong length."""
    max_pixels: int = 16_000_000
    """Images of more pixels than this are quarantined undecoded."""
    out: str = f"{DEMO}/shards/digits"
    """Folder or s3:// URI for the shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(0, "height", "width", "channels")
        _ = self.image(self.height or 4, self.width or 4, self.channels or 1)
        check(
            all(f >= 0 for f in self.splits) and abs(sum(self.splits) - 1) < 1e-6,
            f"splits is {self.splits}; the fractions must not be negative and must add up to 1",
        )
        check(self.splits[0] > 0, f"splits is {self.splits}; the training fraction must be above 0")
        check(0 <= self.split_seed < 2**64, f"split_seed is {self.split_seed}; it must be 0 to below 2^64")
        check_label_rule(self.labels, self.label_pattern, self.table)
        check(
            len(set(self.charset)) == len(self.charset), f"charset is {self.charset!r}; a character stands in it twice"
        )
        check(self.length >= 0, f"length is {self.length}; it must be at least 0 characters")
        check(
            1 <= self.max_pixels <= MAX_MAX_PIXELS,
            f"max_pixels is {self.max_pixels}; it must be 1 to {MAX_MAX_PIXELS}, Pillow's own limit",
        )
        check(bool(self.corpus) and bool(self.out), "corpus and out must each name a folder or a URI")

    def image(self, height: int, width: int, channels: int) -> ImageSpec:
        """The pixels to produce, at this size."""
        return ImageSpec(height=height, width=width, channels=channels, denoise=self.denoise, binarize=self.binarize)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Trains one network on shards, data-parallel, evaluates it on the test split and writes a report."""

    recipe: str = "auto"
    """Named set of defaults for the fields below; auto takes text, text-ctc or glyph by the labels of the shards."""
    shards: str = f"{DEMO}/shards/digits"
    """Folder or s3:// URI that jobs/preprocess.py wrote. The default one is made on first use."""
    unlabelled: str = ""
    """Folder or s3:// URI of images without labels, to learn from as well: a network trained on the shards reads them,
    and those it is sure of are trained on like labeled ones. Default: none."""
    run: str = f"{DEMO}/runs/digits"
    """Folder or s3:// URI for checkpoints, metrics and report; must not hold another run."""
    network: Network = "auto"
    """Architecture; auto is column_cnn."""
    height: int = 0
    """Image height the shards must have, pixels; 0 takes what they have."""
    width: int = 0
    """Image width the shards must have, pixels; 0 takes what they have."""
    slots: int = 0
    """Characters per image the network reads; 0 takes the length of the shards' labels."""
    variable_length: bool = False
    """Read 1 to --slots characters per image instead of exactly as many; column_cnn only."""
    charset: str = ""
    """Alphabet the shards must have; default: take theirs."""
    epochs: int = 0
    """Passes over the training split. 0 chooses a number by its images and characters, and adds to it while the network
    does not read yet or still gets better; a number that is given is kept, unless --max-epochs allows more."""
    max_epochs: int = 0
    """Most passes over the training split that schedule warmup_stable_decay may add up to. 0 means --epochs where that
    is given, else four times the number that is chosen."""
    batch_size: int = 0
    """Images per worker and optimizer step, at most; a split is cut into batches of nearly equal size. 0 for 16 to 256
    over all workers, by the size of the training split."""
    optimizer: Optimizer = "adam"
    """Update rule; sgd and rmsprop use --momentum."""
    learning_rate: float = 1e-3
    """Step size; the peak of it where the schedule is not constant."""
    schedule: Schedule = "constant"
    """constant; one_cycle: linear warm-up, then cosine to zero; or warmup_stable_decay: linear warm-up, then the peak
    until the network reads, then cosine to zero; a network that does not come to read begins anew, with more time."""
    warmup_fraction: float = 0.3
    """Share of the steps that the schedule warms up for; warmup_stable_decay for 150 at most."""
    momentum: float = 0.0
    """Momentum of sgd and rmsprop."""
    weight_decay: float = 0.0
    """L2 penalty (decoupled for adamw)."""
    label_smoothing: float = 0.0
    """Share of the target that goes to all characters alike, 0 to below 1; reported losses are without it."""
    dropout: float = 0.5
    """Dropout before the last layer; glyph_vgg uses half of it after each convolution block."""
    rotation_degrees: float = 0.0
    """Augmentation: largest rotation either way, degrees."""
    shift_fraction: float = 0.0
    """Augmentation: largest shift either way, fraction of width and of height."""
    shear_degrees: float = 0.0
    """Augmentation: largest shear either way, degrees."""
    zoom_fraction: float = 0.0
    """Augmentation: largest zoom in or out per axis, fraction."""
    elastic_fraction: float = 0.0
    """Augmentation: standard deviation of local displacements, fraction of the height."""
    stroke_fraction: float = 0.0
    """Augmentation: share of images whose strokes become thicker, and of those whose become thinner, by a pixel; not of
    images less than 24 pixels high."""
    contrast_fraction: float = 0.0
    """Augmentation: largest change of contrast, fraction; brightness changes by up to two thirds of it."""
    lines_fraction: float = 0.0
    """Augmentation: share of images that a random line crosses, and of those that a second one does; not of single
    characters."""
    invert_fraction: float = 0.0
    """Augmentation: share of images whose light and dark change places."""
    noise_fraction: float = 0.0
    """Augmentation: largest standard deviation of noise, fraction of the range from black to white."""
    patience: int = 0
    """Stop after this many epochs without a better validation accuracy; 0 never stops early."""
    seed: int = 0
    """Seeds weights, order, dropout and augmentation."""
    num_workers: int | str = 1
    """Data-parallel workers, such as 4; or LEAST:MOST, such as 1:4, to go on with fewer while a node is gone and with
    more when there is room again, on a cluster that does nothing else: Ray counts what its nodes have, not what is
    free. A step has --batch-size images of MOST workers then, however many they are."""
    cpus_per_worker: int = 1
    """CPU cores each worker reserves on a cluster; a single worker on this machine uses all of them."""
    use_gpu: bool = False
    """Reserve one GPU per worker and train on it."""
    precision: Precision = "auto"
    """auto: bf16 autocast where the processor has fast bf16 arithmetic, else fp32."""
    max_failures: int = 3
    """How often in a row, with no epoch finished between, lost workers are replaced before the job fails."""
    resume: bool = False
    """Continue the run in --run after an interruption; start it where there is none."""

    @property
    def workers(self) -> tuple[int, int]:
        """The least and the most workers. Raises InputError where `num_workers` does not say them."""
        parts = str(self.num_workers).split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise InputError(f"num_workers is {self.num_workers!r}; it must be a number, or LEAST:MOST like 1:4")
        return int(parts[0]), int(parts[-1])

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "cpus_per_worker")
        least, most = self.workers
        check(1 <= least <= most, f"num_workers is {self.num_workers}; it must be at least 1, or LEAST:MOST like 1:4")
        check(
            not self.variable_length or self.network in ("auto", "column_cnn"),
            f"{self.network} reads the same number of characters in every image; --variable-length needs column_cnn",
        )
        check(
            self.batch_size == 0 or self.batch_size >= 2,
            f"batch_size is {self.batch_size}; batch normalization needs at least 2 images",
        )
        not_negative = (
            "height",
            "width",
            "slots",
            "epochs",
            "max_epochs",
            "momentum",
            "weight_decay",
            "rotation_degrees",
            "shift_fraction",
            "shear_degrees",
            "elastic_fraction",
            "noise_fraction",
            "patience",
            "seed",
            "max_failures",
        )
        for name in not_negative:
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name} is {value}; it must be finite and not negative")
        check(
            0 < self.learning_rate < math.inf, f"learning_rate is {self.learning_rate}; it must be finite and above 0"
        )
        for name in ("label_smoothing", "dropout", "zoom_fraction", "contrast_fraction", "warmup_fraction"):
            check(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be 0 to below 1")
        for name in ("lines_fraction", "invert_fraction"):
            check(0 <= getattr(self, name) <= 1, f"{name} is {getattr(self, name)}; it must be 0 to 1")
        check(
            0 <= self.stroke_fraction <= 0.5,
            f"stroke_fraction is {self.stroke_fraction}; it must be 0 to .5, as many images become thinner as thicker",
        )
        adapts = self.schedule == "warmup_stable_decay"
        check(
            adapts or self.max_epochs == 0,
            f"max_epochs is {self.max_epochs}; schedule {self.schedule} trains for --epochs; pass --max-epochs 0",
        )
        check(
            self.max_epochs == 0 or self.max_epochs >= self.epochs,
            f"max_epochs is {self.max_epochs}; it must be 0, or at least as many as epochs, {self.epochs}",
        )
        check(self.shear_degrees < 90, f"shear_degrees is {self.shear_degrees}; it must be below 90 degrees")
        check(bool(self.shards) and bool(self.run), "shards and run must each name a folder or a URI")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneConfig(Config):
    """Searches a recipe's parameters for a better one, and proves by validation whether it is."""

    recipe: str = "demo-digits"
    """Recipe to start from: a name, or the URI of a best.json or of a run's config.json."""
    shards: str = f"{DEMO}/shards/digits"
    """Folder or s3:// URI that jobs/preprocess.py wrote; trials read images of their size. The default one is made on
    first use."""
    run: str = f"{DEMO}/tune/digits"
    """Folder or s3:// URI for trials, table and report; must not hold another run."""
    num_trials: int = 20
    """Configs to try; the first is the recipe's own, where the space holds it. A resumed search may be given more."""
    epochs: int = 0
    """Passes over the training split of a trial, at most; 0 takes the recipe's."""
    search: Search = "optuna"
    """Who proposes values: optuna (tree-structured Parzen estimator), random, or grid (all combinations)."""
    scheduler: Scheduler = "asha"
    """asha lets the best quarter of the trials go on after 1/6 of the epochs, again after 1/2; none stops no one."""
    space: str = ""
    """TOML file of the parameters to vary: name = [a, b], { low = a, high = b, log = true }, true or false."""
    vary: tuple[str, ...] = ()
    """Parameters to vary, after the file and besides learning_rate, batch_size, dropout, schedule and augmentation,
    which are varied anyway: name, name=a,b,c, name=low..high, name=low..high:log or name=off."""
    only: bool = False
    """Vary nothing but what --space and --vary name."""
    final_seeds: int = 3
    """Trainings in full, each, of the best trial's config and of the recipe at the end; 0 for no comparison, 1 leaves
    the luck of seeds out of it."""
    workers_per_trial: int = 1
    """Data-parallel workers of one trial."""
    cpus_per_worker: int = 1
    """CPU cores each worker reserves."""
    gpus_per_trial: float = 0.0
    """GPUs a trial reserves; a fraction lets several trials share one. For several workers, one GPU each."""
    max_concurrent: int = 0
    """Trials at a time, at most; 0 for as many as fit."""
    seed: int = 0
    """Seeds proposals and trainings; the trainings at the end use the seeds after it."""
    resume: bool = False
    """Continue the search in --run after an interruption, or with more --num-trials; start it where there is none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least(1, "num_trials", "workers_per_trial", "cpus_per_worker")
        self._check_at_least(0, "epochs", "final_seeds", "max_concurrent", "seed")
        gpus = self.gpus_per_trial
        check(
            0 <= gpus < 1 or (math.isfinite(gpus) and gpus > 0 and gpus == int(gpus)),
            f"gpus_per_trial is {gpus}; it must be a fraction of one GPU or a whole number of them",
        )
        check(
            self.workers_per_trial == 1 or gpus in (0, self.workers_per_trial),
            f"gpus_per_trial is {gpus}; {self.workers_per_trial} workers take 0 or {self.workers_per_trial} GPUs",
        )
        check(self.workers_per_trial > 1 or gpus <= 1, f"gpus_per_trial is {gpus}; a single worker takes one at most")
        check(bool(self.shards) and bool(self.run), "shards and run must each name a folder or a URI")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Reads a split or a labeled corpus with a trained network and measures how well; or measures its recipe, by
    training it anew on parts of the images."""

    run: str = f"{DEMO}/runs/digits"
    """Run or checkpoint folder or s3:// URI. The default one is trained on first use."""
    shards: str = ""
    """Shards to read. Default: those the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Which split of the shards."""
    corpus: str = ""
    """Folder or s3:// URI of labeled images to read instead of shards."""
    labels: Labels = "folder"
    """Label rule of the corpus: parent folder's name, file's name, or a table."""
    label_pattern: str = ""
    """Regular expression for labels from file names, as in jobs/preprocess.py."""
    table: str = ""
    """CSV or Parquet with columns path,text, for --labels table."""
    folds: int = 0
    """Cross-validate instead: train as many networks, each on all splits of the shards but one fold, which it then
    reads; 0 does not. Names the labels that they dispute."""
    learning_curve: bool = False
    """Train on 5, 10, 25, 50 and 100 % of the training split instead, read the test split, and tell how many more
    images would reach 99 % of whole strings."""
    num_workers: int = 0
    """Reader actors on the cluster; 0 reads in this process."""
    use_gpu: bool = False
    """Reserve one GPU per reader, or per training."""
    out: str = ""
    """JSON file to write the figures to. Default: the run's results.json and report.html."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.run), "run is empty; name a folder or an s3:// URI")
        check(
            not (self.shards and self.corpus),
            f"shards is {self.shards!r} and corpus is {self.corpus!r}; --shards and --corpus exclude each other",
        )
        check_label_rule(self.labels, self.label_pattern, self.table)
        check(not self.label_pattern or bool(self.corpus), "--label-pattern goes with --corpus")
        check(self.num_workers >= 0, f"num_workers is {self.num_workers}; it must not be negative")
        check(not self.use_gpu or self.num_workers > 0 or self.trains, "--use-gpu needs --num-workers of at least 1")
        check(self.folds == 0 or 2 <= self.folds <= 100, f"folds is {self.folds}; it must be 2 to 100, or 0 for none")
        check(not (self.folds and self.learning_curve), "--folds and --learning-curve exclude each other")
        check(
            not (self.trains and (self.corpus or self.table or self.num_workers or self.out or self.split != "test")),
            "--folds and --learning-curve train on shards and write to the run; --corpus, --table, --split, "
            "--num-workers and --out do not go with them",
        )

    @property
    def trains(self) -> bool:
        """Whether networks are trained, besides the one there is."""
        return self.folds > 0 or self.learning_curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferConfig(Config):
    """Reads whatever is new below a folder or in a bucket, and appends a row per object to a Parquet table."""

    images: str = f"{DEMO}/corpus/text5"
    """Folder, s3:// or gs:// URI, single image, or a listing: a .csv, .csv.gz or .parquet table of URIs, or the
    manifest.json of an S3 inventory."""
    run: str = f"{DEMO}/runs/text5"
    """Run or checkpoint folder or s3:// URI of the network. The default one is trained on first use."""
    out: str = f"{DEMO}/predictions"
    """Folder or s3:// URI of the table; rows are only ever added to it."""
    skip: Literal["same-model", "any-model", "never"] = "same-model"
    """What counts as done: an unchanged object that this model has read, that any model has read, or none."""
    retry_errors: bool = False
    """Read only the objects again whose row of this model is an error and that have not changed since; the new row
    stands beside the old one."""
    match: str = ""
    """Regular expression that must be found in an object's URI; others are passed over. Default: all are read."""
    date_pattern: str = ""
    """Regular expression with groups year, month, day, searched in the URI; partitions the table by date=YYYY-MM-DD."""
    max_error_fraction: float = 0.5
    """Fraction of the objects that may fail; above it the job stops and commits nothing more. With --retry-errors all
    may."""
    stall_timeout_s: float = 600.0
    """Seconds without any progress after which the job fails."""
    endpoint_url: str = ""
    """Address of an S3-compatible store, such as http://127.0.0.1:9000. Default: AWS_ENDPOINT_URL, else Amazon's."""
    objects_per_run: int = 2_000_000
    """Rows that are committed at once, as one file of about 64 bytes a row; a longer night makes several runs."""
    max_bytes: int = 4_000_000
    """Objects of more bytes than this are errors, and are not fetched."""
    max_pixels: int = 16_000_000
    """Images of more pixels than this are errors, and are not decoded."""
    max_stretch: float = 4.0
    """Images whose ratio of width to height differs from the network's by more than this factor are errors."""
    min_confidence: float = 0.0
    """Readings of less confidence, 0 to 1, get the status uncertain; the report names one for 99.9 % precision. Rows
    that the table holds already stay as they are."""
    num_workers: int = 0
    """Workers that fetch, decode and recognize; 0 for one per CPU, or one per GPU with --use-gpu."""
    cpus_per_worker: int = 1
    """CPU cores each worker reserves; more than one decode side by side."""
    use_gpu: bool = False
    """Reserve one GPU per worker and recognize on it."""
    price_per_core_hour: float = 0.04
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
            0 <= self.max_error_fraction <= 1,
            f"max_error_fraction is {self.max_error_fraction}; it must be 0 to 1",
        )
        for name in ("stall_timeout_s", "objects_per_run", "max_bytes", "cpus_per_worker"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"{name} is {value}; it must be finite and above 0")
        check(
            1 <= self.max_pixels <= MAX_MAX_PIXELS,
            f"max_pixels is {self.max_pixels}; it must be 1 to {MAX_MAX_PIXELS}, Pillow's own limit",
        )
        check(0 <= self.min_confidence <= 1, f"min_confidence is {self.min_confidence}; it must be 0 to 1")
        check(self.max_stretch >= 1, f"max_stretch is {self.max_stretch}; it must be at least 1")
        check(self.num_workers >= 0, f"num_workers is {self.num_workers}; it must not be negative")
        check(self.price_per_core_hour >= 0, "price_per_core_hour must not be negative")
        check(not (self.retry_errors and self.skip != "same-model"), "--retry-errors and --skip exclude each other")
        check(
            not self.endpoint_url or self.endpoint_url.startswith(("http://", "https://")),
            f"endpoint_url is {self.endpoint_url!r}; it must start with http:// or https://",
        )
        check("@" not in self.endpoint_url, "endpoint_url must hold no credentials; they belong in the environment")
