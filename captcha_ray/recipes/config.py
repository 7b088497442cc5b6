"""Configure `train`; the docstring under a field is its `--help`."""

import dataclasses
from typing import Annotated, Any, Literal

from captcha_ray.config import DEMO, NOT_NEGATIVE, SHARE, SHARE_BELOW_1, Config, Limit, at_least
from captcha_ray.errors import InputError, check
from captcha_ray.models.spec import BUILTIN, FILTERS, Network, Precision

Optimizer = Literal["sgd", "rmsprop", "adam", "adamw"]


Schedule = Literal["constant", "one_cycle", "warmup_stable_decay"]


Stream = Literal["auto", "always", "never"]

Auto = Literal["rules", "thorough"]

Setting = Literal["rules", "random-weights", "wide", "gentle", "strong", "noisy", "low-dropout", "slow"]

RESUME_MAY_DIFFER = (
    "resume", "run", "stream", "num_workers", "cpus_per_worker", "use_gpu", "checkpoint_every_s", "max_failures",
    "auto", "race_hours",
)  # fmt: skip
"""Fields that may change between the start of a run and its continuation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Train one network on shards, data-parallel, measure it on the test split and write a report."""

    recipe: str = "auto"
    """Defaults for the fields below: a name, or a JSON file such as a search's best.json; auto takes text, text-ctc or
    glyph by the labels of the shards."""
    shards: str = f"{DEMO}/shards/digits"
    """Folder or s3:// URI that jobs/preprocess.py wrote. The default one is made on first use."""
    unlabeled: str = ""
    """Folder or s3:// URI of unlabeled images, to learn from as well: a network trained on the shards predicts their
    texts, and predictions with a confidence of 90 % or more count as labels. Empty for none."""
    run: str = f"{DEMO}/runs/digits"
    """Folder or s3:// URI for checkpoints, metrics and report; must not hold another run."""
    auto: Auto = "rules"
    """rules: what the recipe leaves open follows from the shards. thorough: the settings below race each other by
    validation first, in a folder beside the run whose name ends in -race, and the winner is trained."""
    race_hours: Annotated[float, NOT_NEGATIVE] = 1.0
    """Hours of such a race, in which no setting begins that would not end in time; trainings with two seeds of the
    winner and of the rules, that confirm it, come on top. 0 for no limit."""
    setting: Setting = "rules"
    """Changes to the recipe: begin with random weights, or with those and 32 filters (wide); half or twice the
    distortions (gentle, strong); more noise and contrast (noisy); dropout .1 (low-dropout); a third of the learning
    rate (slow)."""
    network: Network = "auto"
    """Architecture; auto is column_cnn."""
    height: Annotated[int, NOT_NEGATIVE] = 0
    """Image height the shards must have, pixels; 0 takes what they have."""
    width: Annotated[int, NOT_NEGATIVE] = 0
    """Image width the shards must have, pixels; 0 takes what they have."""
    max_length: Annotated[int, NOT_NEGATIVE] = 0
    """Characters per image that the network recognizes; 0 takes the length of the shards' labels."""
    filters: Annotated[int, FILTERS] = 32
    """Filters of column_cnn's first convolution; later ones have up to four times as many. 32 take four times the
    operations of 16 and begin with random weights."""
    head: Literal["auto", "light", "deep"] = "auto"
    """Convolutions of column_cnn along the columns: light, one of four times --filters, as in earlier versions; deep,
    two of ten times as many, which take a quarter more operations. auto: as the weights have that training begins
    with, or deep."""
    init: str = ""
    """Folder or URI of a run whose weights column_cnn begins with, and which has as many --filters; or builtin, for the
    weights that come with the package. Characters that both know keep what was learned of them. Empty for random
    weights."""
    from_scratch: bool = False
    """Begin with random weights, whatever the recipe says."""
    variable_length: bool = False
    """Recognize 1 to --max-length characters per image instead of exactly as many; column_cnn only."""
    charset: str = ""
    """Alphabet the shards must have; default: take theirs."""
    epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Passes over the training split. 0 chooses a number by its images and characters, and adds to it while the network
    does not recognize text yet or still improves; a number that is given is kept, unless --max-epochs allows more."""
    max_epochs: Annotated[int, NOT_NEGATIVE] = 0
    """Most passes over the training split that schedule warmup_stable_decay may add up to. 0 means --epochs where that
    is given, else four times the number that is chosen."""
    batch_size: int = 0
    """Images per worker and optimizer step, at most; a split is cut into batches of nearly equal size. 0 for 16 to 256
    over all workers, by the size of the training split."""
    optimizer: Optimizer = "adam"
    """Update rule; sgd and rmsprop use --momentum."""
    learning_rate: Annotated[float, NOT_NEGATIVE] = 1e-3
    """Step size; the peak of it where the schedule is not constant. 0 for 3e-3, or less where training begins with
    weights and images show the average character fewer than ten times."""
    schedule: Schedule = "constant"
    """constant; one_cycle: linear warm-up, then cosine to zero; or warmup_stable_decay: linear warm-up, then the peak
    until the network recognizes text, then cosine to zero; a network that does not get there starts over."""
    warmup_fraction: Annotated[float, SHARE_BELOW_1] = 0.3
    """Share of the steps that the schedule warms up for; warmup_stable_decay for 200 at most."""
    momentum: Annotated[float, NOT_NEGATIVE] = 0.0
    """Momentum of sgd and rmsprop."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.0
    """L2 penalty (decoupled for adamw)."""
    label_smoothing: Annotated[float, SHARE_BELOW_1] = 0.0
    """Share of the target that goes to all characters alike, 0 to below 1; reported losses are without it."""
    dropout: Annotated[float, SHARE_BELOW_1] = 0.5
    """Dropout before the last layer; glyph_vgg uses half of it after each convolution block."""
    rotation_degrees: Annotated[float, NOT_NEGATIVE] = 0.0
    """Augmentation: largest rotation either way, degrees."""
    shift_fraction: Annotated[float, NOT_NEGATIVE] = 0.0
    """Augmentation: largest shift either way, fraction of width and of height."""
    shear_degrees: Annotated[float, Limit(0, 90, "0 to below 90 degrees", below=True)] = 0.0
    """Augmentation: largest shear either way, degrees."""
    zoom_fraction: Annotated[float, SHARE_BELOW_1] = 0.0
    """Augmentation: largest zoom in or out per axis, fraction."""
    elastic_fraction: Annotated[float, NOT_NEGATIVE] = 0.0
    """Augmentation: standard deviation of local displacements, fraction of the height."""
    stroke_fraction: Annotated[float, Limit(0, 0.5, "0 to .5, as many images become thinner as thicker")] = 0.0
    """Augmentation: share of images whose strokes become thicker, and of those whose become thinner, by a pixel; not of
    images less than 24 pixels high."""
    contrast_fraction: Annotated[float, SHARE_BELOW_1] = 0.0
    """Augmentation: largest change of contrast, fraction; brightness changes by up to two thirds of it."""
    lines_fraction: Annotated[float, SHARE] = 0.0
    """Augmentation: share of images that a random line crosses, and of those that a second one does; not of single
    characters."""
    invert_fraction: Annotated[float, SHARE] = 0.0
    """Augmentation: share of images whose light and dark change places."""
    noise_fraction: Annotated[float, NOT_NEGATIVE] = 0.0
    """Augmentation: largest standard deviation of noise, fraction of the range from black to white."""
    patience: Annotated[int, NOT_NEGATIVE] = 0
    """Stop after this many epochs without a better validation accuracy; 0 never stops early."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seeds weights, order, dropout and augmentation."""
    num_workers: int | str = 1
    """Data-parallel workers, such as 4; or LEAST:MOST, such as 1:4, to go on with fewer while a node is gone and with
    more when there is capacity again, on a cluster that does nothing else: Ray counts what its nodes have, not what is
    free. A step has --batch-size images of MOST workers then, however many they are."""
    cpus_per_worker: Annotated[int, at_least(1)] = 1
    """CPU cores each worker reserves on a cluster; a single worker on this machine uses all of them."""
    use_gpu: bool = False
    """Reserve one GPU per worker and train on it."""
    precision: Precision = "auto"
    """auto: bf16 autocast where the processor has fast bf16 arithmetic, else fp32."""
    stream: Stream = "auto"
    """Read images from the shards in every epoch instead of holding them all in memory; only those that are shuffled
    together are held. auto does so where images take more than half of what Ray's object stores hold: those of all
    nodes, or of as many as there are workers."""
    checkpoint_every_s: Annotated[float, NOT_NEGATIVE] = 300.0
    """Seconds between two saves within an epoch; 0 saves at its end alone. An interrupted epoch goes on from the last
    save with as many workers; with more or fewer it begins again. Several workers save at every sixteenth step only."""
    max_failures: Annotated[int, NOT_NEGATIVE] = 3
    """Replace lost workers so often in a row, with no progress kept between, before the job fails."""
    resume: bool = False
    """Continue the run in --run after an interruption; start it where there is none."""

    @property
    def workers(self) -> tuple[int, int]:
        """Return the least and the most workers. Raises InputError if `num_workers` does not say them."""
        parts = str(self.num_workers).split(":")
        if len(parts) > 2 or not all(part.isdecimal() for part in parts):
            raise InputError(f"num_workers is {self.num_workers!r}; it must be a number, or LEAST:MOST like 1:4")
        return int(parts[0]), int(parts[-1])

    def absolute(self) -> "TrainConfig":
        """Return the config with absolute paths; `BUILTIN` stays a name."""
        from captcha_ray.storage.filesystem import absolute  # noqa: PLC0415 -- benchmarks have the config alone

        paths = {name: getattr(self, name) for name in ("shards", "unlabeled", "init", "run")}
        kept = ("", BUILTIN)
        known: dict[str, Any] = {name: path if path in kept else absolute(path) for name, path in paths.items()}
        return dataclasses.replace(self, **known)

    def __post_init__(self) -> None:
        super().__post_init__()
        least, most = self.workers
        check(1 <= least <= most, f"num_workers is {self.num_workers}; it must be at least 1, or LEAST:MOST like 1:4")
        check(
            not self.variable_length or self.network in ("auto", "column_cnn"),
            f"{self.network} recognizes a fixed number of characters; --variable-length needs column_cnn",
        )
        check(
            self.batch_size == 0 or self.batch_size >= 2,
            f"batch_size is {self.batch_size}; batch normalization needs at least 2 images",
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
        check(
            self.init in ("", BUILTIN) or self.network in ("auto", "column_cnn"),
            f"init is {self.init!r}; {self.network} begins with random weights, only column_cnn with those of a run",
        )
        check(
            self.init in ("", BUILTIN) or not self.from_scratch,
            f"init is {self.init!r}, and from_scratch says to begin with random weights; leave one of them out",
        )
        check(
            self.stream != "always" or not self.unlabeled,
            "images from --unlabeled are held in memory, so --stream always cannot be had with them",
        )
        check(
            self.auto == "rules" or self.setting == "rules",
            f"setting is {self.setting}, and auto thorough says to find one by trial; leave one of them out",
        )
        check(self.run != BUILTIN, f"run is {BUILTIN!r}, the name of the network of this package; name another folder")
        check(bool(self.shards) and bool(self.run), "shards and run must each name a folder or a URI")
