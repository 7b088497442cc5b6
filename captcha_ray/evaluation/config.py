"""Configure `evaluate`; the docstring under a field is its `--help`."""

import dataclasses
from typing import Annotated, Literal

from captcha_ray.config import DEMO, NOT_NEGATIVE, Config
from captcha_ray.datasets.config import LabelRule, Labels
from captcha_ray.engines.engine import Name, Precision
from captcha_ray.errors import check
from captcha_ray.models.restriction import Restriction
from captcha_ray.models.spec import BUILTIN


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Config):
    """Measure a network on a split or a labeled corpus, or its recipe by training it anew on parts of the images."""

    run: str = f"{DEMO}/runs/digits"
    """Run or checkpoint folder or s3:// URI; or builtin, for the network that comes with the package. The default one
    is trained on first use."""
    charset: str = ""
    """Characters that texts may hold, of those that the network knows, as in jobs/infer.py. Default: all of them."""
    length: Annotated[int, NOT_NEGATIVE] = 0
    """Characters of every text, as in jobs/infer.py; 0 for as many as the network finds."""
    shards: str = ""
    """Folder or s3:// URI of shards to measure on. Default: those the run was trained on."""
    split: Literal["train", "val", "test"] = "test"
    """Measure on this split of the shards."""
    corpus: str = ""
    """Folder or s3:// URI of labeled images to measure on instead of shards."""
    labels: Labels = "folder"
    """Label rule of the corpus: parent folder's name, file's name, or a table."""
    label_pattern: str = ""
    """Regular expression for labels from file names, as in jobs/preprocess.py."""
    table: str = ""
    """CSV, TSV, JSON Lines or Parquet with columns path,text, for --labels table."""
    path_column: str = ""
    """Column of the table that names the images, as in jobs/preprocess.py."""
    text_column: str = ""
    """Column of the table that holds the labels, as in jobs/preprocess.py."""
    keep_blanks: bool = False
    """Keep blanks at the ends of labels, and invisible characters, as in jobs/preprocess.py."""
    folds: int = 0
    """Cross-validate in this many folds instead: each is predicted by a network that was trained on the others; 0 for
    none. Names the labels that the predictions dispute."""
    learning_curve: bool = False
    """Train on 5, 10, 25, 50 and 100 % of the training split instead, predict the test split, and estimate how
    many more images would reach 99 % of whole strings."""
    num_workers: Annotated[int, NOT_NEGATIVE] = 0
    """Actors on the cluster that predict; 0 predicts in this process."""
    use_gpu: bool = False
    """Reserve one GPU per actor, or per training."""
    engine: Name = "torch"
    """Compute with openvino, onnxruntime, torch, or auto, which is what jobs/infer.py takes. Networks are trained, and
    measured after a training, with torch."""
    precision: Precision = "auto"
    """Compute in int8, bf16, fp32, or auto, as in jobs/infer.py."""
    out: str = ""
    """JSON file to write the figures to. Default: the run's results.json and report.html; none with --charset,
    --length, --precision, another --engine, or --run builtin."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.run), "run is empty; name a folder or an s3:// URI")
        check(
            not (self.shards and (self.corpus or self.table)),
            f"shards is {self.shards!r} and corpus or table is {self.corpus or self.table!r}; they exclude each other",
        )
        _ = self.label_rule
        check(not self.label_pattern or bool(self.corpus), "--label-pattern goes with --corpus")
        check(not self.use_gpu or self.num_workers > 0 or self.trains, "--use-gpu needs --num-workers of at least 1")
        check(
            not self.use_gpu or self.engine in ("auto", "torch"),
            f"engine is {self.engine}; with --use-gpu it must be torch",
        )
        check(
            self.engine != "torch" or self.precision != "int8",
            "precision is int8, in which engine torch cannot compute; pass --engine auto",
        )
        check(
            not self.trains or (self.engine, self.precision) == ("torch", "auto"),
            f"engine is {self.engine} and precision {self.precision}; --folds and --learning-curve leave both at "
            "their defaults",
        )
        check(self.folds == 0 or 2 <= self.folds <= 100, f"folds is {self.folds}; it must be 2 to 100, or 0 for none")
        check(not (self.folds and self.learning_curve), "--folds and --learning-curve exclude each other")
        check(
            not (self.trains and (self.charset or self.length or self.run == BUILTIN)),
            "--folds and --learning-curve train networks; --charset, --length and --run builtin do not go with them",
        )
        check(
            not (self.trains and (self.corpus or self.table or self.num_workers or self.out or self.split != "test")),
            "--folds and --learning-curve train on shards and write to the run; --corpus, --table, --split, "
            "--num-workers and --out do not go with them",
        )

    @property
    def label_rule(self) -> LabelRule:
        """Return the rule by which labels of the corpus are found."""
        columns = (self.path_column, self.text_column)
        return LabelRule(self.labels, self.label_pattern, self.table, *columns, self.keep_blanks)

    @property
    def restriction(self) -> Restriction:
        """Return what is known of all texts."""
        return Restriction(self.charset, self.length)

    @property
    def as_trained(self) -> bool:
        """Return whether the network is measured as it was after its training, so that the figures are the run's."""
        return self.restriction == Restriction() and (self.engine, self.precision) == ("torch", "auto")

    @property
    def trains(self) -> bool:
        """Return whether networks are trained for the measurement."""
        return self.folds > 0 or self.learning_curve


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(Config):
    """Write a network's ONNX models anew, and measure on validation images what each precision loses."""

    run: str = f"{DEMO}/runs/digits"
    """Run or checkpoint folder or s3:// URI; the models are written into it. The default one is trained on first
    use."""
    shards: str = ""
    """Folder or s3:// URI of shards whose validation images are recognized. Default: those the run was trained on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(bool(self.run), "run is empty; name a folder or an s3:// URI")
        check(self.run != BUILTIN, "the network that comes with the package has its models; name a run of yours")
