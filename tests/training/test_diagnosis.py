"""A network that reads nothing is called that, with figures, causes in order, and a command that can be run."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from captcha_ray.datasets.config import PreprocessConfig
from captcha_ray.datasets.schema import Manifest
from captcha_ray.evaluation.config import EvaluateConfig
from captcha_ray.metrics.counts import PredictionCounts
from captcha_ray.recipes.catalog import get
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training import diagnosis
from tests import factories
from tests.support.commands import parsed

CONFIG = dataclasses.replace(
    get("auto"), network="column_cnn", epochs=40, max_epochs=160, shards="shards/strip", run="runs/strip"
)
CORPUS = PreprocessConfig(corpus="my strips", labels="filename", label_pattern=r"^(\w+)-", out="shards/strip")
ABCD = ["abcd", "bcda", "cdab", "dabc", "aabb"]


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "source": "my strips",
        "label_rule": {"labels": "filename", "label_pattern": r"^(\w+)-", "table": ""},
        "num_characters": {"train": {"a": 700, "b": 500, "c": 300, "d": 100}, "val": {}, "test": {}},
        "num_quarantined": {"no_label": 20, "conflicting_labels": 2, "truncated": 7},
        "config": CORPUS.to_dict(),
    }
    return factories.manifest(**(values | changes))


def summary(truths: list[str], predictions: list[str], charset: str = "abcd") -> dict[str, Any]:
    return PredictionCounts.of(charset, truths, predictions, [0.0] * len(truths)).summary()


def epoch(train: float | None = 5.5, val: float | None = 5.6, strings: float = 0.0) -> dict[str, Any]:
    return {"epoch": 1, "train_loss": train, "val_loss": val, "val_exact_match": strings}


NOTHING = {"test": summary(ABCD * 10, ["aaaa"] * 50)}


def test_a_network_that_reads_is_not_warned_of() -> None:
    read = {"test": summary(ABCD, ["abcd", "bcda", "cdab", "dabc", "bbbb"])}
    assert diagnosis.diagnose(read, [epoch(0.1, 0.2, 0.8)], CONFIG, manifest()) == []


@pytest.mark.parametrize("share", [0.0, 0.02])
def test_a_network_that_reads_no_string_is_told_with_all_figures_and_causes_in_order(share: float) -> None:
    said = diagnosis.diagnose(NOTHING, [epoch(strings=share)], CONFIG, manifest())
    assert said == [
        "this network is of no use: it recognizes 0.00% of the 50 strings of test and 30.00% of their characters, of "
        f"which the commonest alone are 30.00%; in the best of 1 epochs it has recognized {share:.2%} of the "
        "validation strings",
        "pixels: images of 160x32 leave 40 pixels of width to each of up to 4 characters, usually enough",
        "images: 400 to train on, in which the rarest of 4 characters, 'd', stands 100 times, usually enough",
        "labels: 22 of 529 files were kept out because their labels do not fit (--labels filename --label-pattern "
        "'^(\\w+)-'); look at the pictures in the report to see whether the other labels are right",
        "loss: 5.50 nats an image in training, 5.60 in validation; guessing costs 4.85, so next to nothing was learned "
        "in 1 epochs, where 40 would be chosen",
        "next: python jobs/train.py --shards shards/strip --run runs/strip-longer --max-epochs 320",
    ]


def test_characters_that_are_no_better_than_the_commonest_one_are_useless_whatever_strings_say() -> None:
    """Single characters, nine of ten of which are a: a network that always says a reads 90 % of them."""
    always = {"test": summary(["a"] * 9 + ["b"], ["a"] * 10, "ab")}
    single = manifest(charset="ab", min_length=1, max_length=1, num_characters={"train": {"a": 360, "b": 40}})
    assert "90.00% of the 10 strings" in diagnosis.diagnose(always, [epoch(0.1, 0.1, 0.9)], CONFIG, single)[0]
    better = {"test": summary(["a"] * 9 + ["b"], ["a"] * 9 + ["b"], "ab")}
    assert diagnosis.diagnose(better, [epoch(0.1, 0.1, 1.0)], CONFIG, single) == []


@pytest.mark.parametrize(
    ("predictions", "useless"),
    [
        (["abca", "bcdb", "cdac"], False),  # three of four characters each
        (["aaaa", "bbbb", "cccc"], True),
    ],
)
def test_few_strings_may_be_missed_by_bad_luck(predictions: list[str], useless: bool) -> None:
    few = {"test": summary(ABCD[:3], predictions)}
    single = [epoch(0.1, 0.2, 0.8)]
    assert bool(diagnosis.diagnose(few, single, CONFIG, manifest())) == useless
    many = {"test": summary(ABCD[:3] * 10, predictions * 10)}
    assert diagnosis.diagnose(many, single, CONFIG, manifest()), "of thirty, none is no bad luck"


def test_a_test_of_one_character_alone_may_be_read_in_full() -> None:
    assert diagnosis.diagnose({"test": summary(["a"] * 3, ["a"] * 3)}, [epoch(0.1, 0.2, 0.8)], CONFIG, manifest()) == []


def test_one_label_for_all_images_is_no_success() -> None:
    perfect = {"test": summary(["7"] * 5, ["7"] * 5, "7")}
    single = manifest(charset="7", min_length=1, max_length=1, num_characters={"train": {"7": 400}})
    assert "every label is '7'" in diagnosis.diagnose(perfect, [epoch(0.0, 0.0, 1.0)], CONFIG, single)[0]
    tally = {"test": summary(["|", "||", "|||"], ["|", "||", "|||"], "|")}
    varies = manifest(charset="|", min_length=1, max_length=3, num_characters={"train": {"|": 400}})
    assert diagnosis.diagnose(tally, [epoch(0.0, 0.0, 1.0)], CONFIG, varies) == []


def test_validation_that_reads_nothing_is_enough() -> None:
    read = {"train": summary(ABCD, ABCD)}
    said = diagnosis.diagnose(read, [epoch(0.1, 9.0, 0.01), epoch(0.1, 9.0, 0.0)], CONFIG, manifest())
    assert (
        said[0]
        == "this network is of no use: in the best of 2 epochs it has recognized 1.00% of the validation strings"
    )
    assert "so the training images were learned by heart" in said[4]


def test_an_evaluation_of_no_images_says_nothing() -> None:
    assert diagnosis.diagnose({"test": summary([], [])}, [], CONFIG, manifest()) == []


@pytest.mark.parametrize(
    ("changes", "config", "epochs", "command"),
    [
        (
            {"image": {"height": 64, "width": 32, "channels": 3}},
            CONFIG,
            [epoch()],
            "python jobs/preprocess.py --corpus 'my strips' --labels filename --label-pattern '^(\\w+)-' --height 192 "
            "--width 96 --out shards/strip-96x192",
        ),
        (
            {},
            dataclasses.replace(CONFIG, network="multi_head_cnn"),
            [epoch()],
            "python jobs/train.py --shards shards/strip --run runs/strip-auto",
        ),
        (
            {"num_characters": {"train": {"a": 700, "b": 500, "c": 300, "d": 3}}},
            CONFIG,
            [epoch()],
            "python jobs/evaluate.py --run runs/strip --learning-curve",
        ),
        (
            {},
            CONFIG,
            [epoch(0.5, 7.0)],
            "python jobs/evaluate.py --run runs/strip --learning-curve",
        ),
    ],
    ids=["few pixels", "another network", "few images", "learned by heart"],
)
def test_the_next_command_is_the_first_cause_s(
    changes: dict[str, Any], config: TrainConfig, epochs: list[dict[str, Any]], command: str
) -> None:
    said = diagnosis.diagnose(NOTHING, epochs, config, manifest(**changes))
    assert said[-1] == f"next: {command}"


def test_a_training_that_was_kept_short_is_repeated_at_full_length() -> None:
    short = dataclasses.replace(CONFIG, epochs=1, max_epochs=1)
    said = diagnosis.diagnose(NOTHING, [epoch()], short, manifest())
    assert said[-1] == "next: python jobs/train.py --shards shards/strip --run runs/strip-longer"


def test_images_of_others_say_nothing_of_the_training() -> None:
    read = {"test": summary(ABCD, ABCD), "others": summary(ABCD * 5, ["aaaa"] * 25)}
    assert diagnosis.diagnose(read, [epoch(0.1, 0.1, 1.0)], CONFIG, manifest()) == []
    assert "strings of others" in diagnosis.describe_useless("others", read["others"])
    assert diagnosis.describe_useless("test", read["test"]) == ""


def test_labels_that_do_not_fit_are_looked_at(tmp_path: Path) -> None:
    rows = {"uri": ["a b.png"], "reason": ["no_label"], "detail": [""]}
    (tmp_path / "quarantine").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "quarantine/part-0.parquet")
    config = dataclasses.replace(CONFIG, shards=str(tmp_path))
    said = diagnosis.diagnose(NOTHING, [epoch()], config, manifest(num_quarantined={"no_label": 300}))
    python, *arguments = shlex.split(said[-1].removeprefix("next: "))
    assert python == "python"
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout == "{'reason': 'no_label', 'uri': 'a b.png'}\n"


def test_losses_that_nobody_knows_are_not_made_up() -> None:
    epochs = [{"epoch": 1, "train_loss": 5.5}]
    assert "5.50 nats an image in training; guessing" in diagnosis.diagnose(NOTHING, epochs, CONFIG, manifest())[4]
    assert "loss: unknown; guessing costs 4.85" in diagnosis.diagnose(NOTHING, [], CONFIG, manifest())[4]


def test_the_flags_are_the_jobs_own() -> None:
    """What the sentences name are fields of the configs that the jobs parse."""
    fields = {
        field.name for kind in (TrainConfig, PreprocessConfig, EvaluateConfig) for field in dataclasses.fields(kind)
    }
    few = manifest(image={"height": 64, "width": 32, "channels": 3})
    for one in (few, manifest(), manifest(num_characters={"train": {"a": 1, "b": 1, "c": 1, "d": 1}})):
        words = shlex.split(diagnosis.diagnose(NOTHING, [epoch()], CONFIG, one)[-1])
        flags = {word.removeprefix("--").replace("-", "_") for word in words if word.startswith("--")}
        assert flags
        assert flags <= fields


def results(right: int, *wrong: tuple[str, str], **others: Any) -> dict[str, Any]:
    """Return results of a test split: strings that are right, and pairs of truths and predictions that are not."""
    truths = ["abcd"] * right + [truth for truth, _ in wrong]
    predictions = ["abcd"] * right + [prediction for _, prediction in wrong]
    return {"test": summary(truths, predictions, "abcdA"), **others}


def test_a_good_network_needs_no_advice() -> None:
    assert diagnosis.suggest(results(98, ("abcd", "abca"), ("abcd", "bbcd")), CONFIG, manifest()) == []
    assert diagnosis.suggest({}, CONFIG, manifest()) == []
    assert diagnosis.suggest({"train": summary(ABCD, ["aaaa"] * 5)}, CONFIG, manifest()) == []


def test_confused_characters_are_counted_with_what_they_cost() -> None:
    wrong = [("abcd", "bbcd"), ("bacd", "aacd"), ("abcd", "abca"), ("abcd", "abc"), ("abcd", "dddd")]
    said = diagnosis.suggest(results(95, *wrong), CONFIG, manifest())
    assert said[0] == (
        "characters: 3 of 5 wrong strings are wrong in one character alone, most often 'a' and 'b' (2), 'a' and 'd' "
        "(1); if these were told apart, 98.0% of the strings would be right instead of 95.0%; the pictures of the "
        "mistakes show whether people can"
    )
    assert not [sentence for sentence in said if sentence.startswith(("case:", "images:", "size:"))]


def test_advice_names_what_applies_with_commands_that_can_be_parsed() -> None:
    rare = manifest(
        image={"height": 32, "width": 60, "channels": 1, "denoise": 0, "binarize": False},
        num_characters={"train": {"a": 700, "b": 19, "c": 300, "d": 0}, "val": {}, "test": {}},
    )
    said = diagnosis.suggest(results(90, *[("abcd", "Abcd")] * 10), CONFIG, rare)
    names = [sentence.partition(":")[0] for sentence in said]
    assert names == ["characters", "case", "images", "size", "labels", "more labels"]
    assert said[1].startswith(
        "case: 100.0% of the strings are right if upper and lower case count as one, 90.0% if not"
    )
    assert "2 of 4 characters stand fewer than 20 times in the training images, such as 'd' (0), 'b' (19)" in said[2]
    assert "15 pixels of width a character" in said[3]
    commands = [sentence[sentence.index("python jobs/") :] for sentence in said[3:]]
    sized, folds, curve = (parsed(words[1].split("/")[1][:-3], words[2:]) for words in map(shlex.split, commands))
    assert (sized.width, sized.height) == (96, 51)
    assert (folds.run, folds.folds, curve.learning_curve) == ("runs/strip", 5, True)


def test_what_was_measured_already_is_used_and_the_largest_split_counts() -> None:
    folds = summary(["abcd"] * 80 + ["abcd"] * 20, ["abcd"] * 80 + ["aacd"] * 20)
    known = results(90, ("abcd", "abc"), cross_validation=folds, learning_curve={"answer": "99% would want 700 images"})
    said = diagnosis.suggest(known, CONFIG, manifest())
    assert "instead of 80.0%" in said[0]
    assert said[-1] == "more labels: 99% would want 700 images"
    assert not [sentence for sentence in said if sentence.startswith("labels:")]


def test_a_larger_size_is_that_of_the_whole_picture_where_the_text_was_cut_out() -> None:
    image = {"height": 32, "width": 40, "channels": 1, "crop": [0.0, 0.4, 1.0, 0.6]}
    said = diagnosis.suggest(results(90, *[("abcd", "abc")] * 10), CONFIG, manifest(image=image))
    assert "--height 384 --width 96" in next(sentence for sentence in said if sentence.startswith("size:"))


def test_a_network_that_always_says_the_commonest_character_is_found_by_validation_too() -> None:
    """Its test split holds one class alone, so all of it is right."""
    always = {"test": summary(["a"] * 19, ["a"] * 19, "ab")}
    counts = {"train": {"a": 360, "b": 40}, "val": {"a": 20, "b": 2}, "test": {"a": 19, "b": 0}}
    single = manifest(charset="ab", min_length=1, max_length=1, num_characters=counts)
    lines = [{**epoch(0.3, 0.3, 20 / 22), "val_char_accuracy": 20 / 22}]
    said = diagnosis.diagnose(always, lines, CONFIG, single)
    assert "90.91% of the validation characters, of which the commonest alone are 90.91%" in said[0]
    better = [{**epoch(0.3, 0.3, 21 / 22), "val_char_accuracy": 21 / 22}]
    assert diagnosis.diagnose(always, better, CONFIG, single) == []


def test_a_larger_size_is_not_advised_where_lines_are_put_side_by_side() -> None:
    """A size that is given would leave the two lines above one another."""
    image = {"height": 32, "width": 40, "channels": 1, "two_lines": 1.5}
    said = diagnosis.suggest(results(90, *[("abcd", "abc")] * 10), CONFIG, manifest(image=image))
    assert not [sentence for sentence in said if sentence.startswith("size:")]
    told = diagnosis.diagnose(NOTHING, [epoch()], CONFIG, manifest(image=image))
    assert "preprocess.py" not in told[-1]
