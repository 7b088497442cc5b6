"""Write the report of a run: `report.html` and the pictures in `figures/`. Measures nothing itself."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from captcha_ray.metrics import calibration
from captcha_ray.metrics.counts import Mistake
from captcha_ray.reporting import figures, page
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.storage import filesystem

NO_MISTAKES = "No mistakes on this split."

DISPUTED = (
    "In place of {} labels another text was predicted with a confidence of at least 99 %, by a network that had not "
    "seen the image: often the label is wrong. Below, all predictions that dispute a label, the surest "
    "first; folds.parquet has every prediction."
)


def write(run: RunDirectory, results: Mapping[str, Any], mistakes: Mapping[str, Sequence[Mistake]]) -> str:
    """Write `report.html` and `figures/*.png` of a run and return the URI of the page.

    `config.json`, `environment.json` and `metrics.jsonl` are shown if the run has them.

    Args:
        run: Directory of the run.
        results: `PredictionCounts.summary()` per split name, and further results; "seconds" is how long the last
            session of the training took.
        mistakes: Per split name, worst first. A split without an entry keeps the picture it has.

    Raises:
        InputError: One of the files is not JSON.
        OSError: The folder cannot be written.
    """
    epochs = run.read_metrics()
    splits = {name: value for name, value in results.items() if isinstance(value, dict) and "num_images" in value}
    rest = {name: value for name, value in results.items() if name not in splits}
    parts = [_sentences("Warning", said)] if (said := rest.pop("warnings", None)) else []
    parts += [_sentences("What next?", said)] if (said := rest.pop("next_steps", None)) else []
    parts += [_split(run, name, summary, mistakes.get(name)) for name, summary in splits.items()]
    if race := rest.pop("race", None):
        parts.append(_race(race))
    if curve := rest.pop("learning_curve", None):
        parts.append(_learning_curve(run, curve))
    if epochs:
        parts.append(_training(run, epochs))
    parts.append(page.section("How long it took", page.pairs(_durations(rest.pop("seconds", None), epochs))))
    if rest:
        parts.append(page.section("Other results", page.pairs(page.flat(rest))))
    parts += page.origins(run)
    return page.write(run, "Report", parts)


def _sentences(title: str, sentences: Sequence[str]) -> page.Block:
    """Say what makes the network useless, or what may make it better, before any figure."""
    return page.section(title, *(page.paragraph(sentence) for sentence in sentences))


def _race(race: Mapping[str, Any]) -> page.Block:
    """Say which setting won a race by how much, and how far each came."""
    rows = [
        [one["setting"], page.percent(one["exact_match"]), str(one["epochs"]), one["status"]] for one in race["tried"]
    ]
    return page.section(
        "Race of settings",
        page.paragraph(
            f"Setting {race['best']} was the best, and {race['setting']} was trained: {race['verdict']}. More in "
            f"{race['report']}."
        ),
        page.table(["Setting", "Whole strings right in validation", "Epochs", "How it ended"], rows, numbers=True),
    )


def _split(run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None) -> page.Block:
    confusion = figures.confusion_matrix(**summary["confusion"])
    folds = summary.get("folds")
    return page.section(
        f"Cross-validation in {len(folds)} folds" if folds else f"Split {name}",
        page.pairs(_measures(summary)),
        *([_folds(folds)] if folds else []),
        *(_confidence(run, name, summary["confidence"]) if "confidence" in summary else []),
        *(
            [page.heading("Disputed labels"), page.paragraph(DISPUTED.format(summary["num_disputed"]))]
            if folds
            else [page.heading("Mistakes")]
        ),
        *_mistakes(run, name, summary, rows),
        page.heading("Confusion of characters"),
        page.figure(run, f"confusion_{name}", f"Confusion matrix of split {name}: truth by prediction", confusion),
        page.heading("Characters"),
        _classes(summary),
    )


def _measures(summary: Mapping[str, Any]) -> dict[str, str]:
    exact = page.percent(summary["exact_match"])
    if summary["exact_match_ci95"] is not None:
        low, high = summary["exact_match_ci95"]
        exact += f" ({summary['num_exact_match']} of {summary['num_images']}; "
        exact += f"95% interval {page.percent(low)} to {page.percent(high)})"
    positions = enumerate(summary["position_accuracy"], start=1)
    loosely = summary.get("exact_match_ignoring_case")
    differs = loosely is not None and loosely != summary["exact_match"]
    ignoring_case = {"The same ignoring case": page.percent(loosely)} if differs else {}
    return {
        "Images": str(summary["num_images"]),
        "Loss, nats per image": page.number(summary["loss"], ".4f"),
        "Character accuracy": page.percent(summary["char_accuracy"]),
        "Character error rate, by edits": page.percent(summary.get("char_error_rate")),
        "Whole-string accuracy": exact,
        **ignoring_case,
        **{f"Accuracy at position {position}": page.percent(value) for position, value in positions},
    }


def _folds(folds: Sequence[Mapping[str, Any]]) -> page.Block:
    """Return a row per fold: what its network, trained on the others, recognizes of it."""
    body = []
    for one in folds:
        low, high = (page.percent(value) for value in one["exact_match_ci95"])
        accuracies = [page.percent(one["exact_match"]), f"{low} to {high}", page.percent(one["char_accuracy"])]
        body.append([one["fold"], str(one["num_images"]), str(one["num_exact_match"]), *accuracies])
    return page.table(["Fold", "Images", "Right", "Whole strings", "95% interval", "Characters"], body, numbers=True)


def _confidence(run: RunDirectory, name: str, summary: Mapping[str, Any]) -> list[page.Block]:
    """Return calibration error and the threshold for a precision, with their pictures."""
    rows = {"Expected calibration error": page.percent(summary["calibration_error"])}
    found = summary["threshold"]
    if found is None:
        said = "no confidence is high enough"
    else:
        low, high = (page.percent(value) for value in found["precision_ci95"])
        enough = "" if found["precision_ci95"][0] >= found["target"] else "; too few predictions to be sure of it"
        requested = math.floor(found["confidence"] * 1e6) / 1e6  # rounded up, it would leave that reading out
        said = (
            f"{requested:.6f}, which {page.percent(found['coverage'])} of the images reach; of these "
            f"{found['num_images']}, {page.percent(found['precision'])} are right "
            f"(95% interval {low} to {high}){enough}"
        )
    target = calibration.PRECISION if found is None else found["target"]
    rows[f"--min-confidence for {target:.1%} precision"] = said
    reliability = figures.calibration(summary["bins"])
    risk = figures.risk_coverage(summary["risk_coverage"])
    return [
        page.heading("Confidence"),
        page.pairs(rows),
        page.figure(run, f"calibration_{name}", "Accuracy against confidence", reliability),
        page.figure(run, f"risk_{name}", "Risk against coverage", risk),
    ]


def _learning_curve(run: RunDirectory, curve: Mapping[str, Any]) -> page.Block:
    """Return what networks trained on parts of the images recognize, and how many images would do."""
    body = []
    for point in curve["points"]:
        low, high = (page.percent(value) for value in point["exact_match_ci95"])
        body.append([str(point["num_images"]), page.percent(point["exact_match"]), f"{low} to {high}"])
    return page.section(
        "Learning curve",
        page.paragraph(f"{curve['answer']}."),
        page.figure(
            run, "learning_curve", "Whole strings right against training images", figures.learning_curve(curve)
        ),
        page.table(["Training images", "Whole strings", "95% interval"], body, numbers=True),
    )


def _classes(summary: Mapping[str, Any]) -> page.Block:
    """Return precision, recall, F1 and support per character, in the alphabet's order, and their averages."""
    ratios = ("precision", "recall", "f1")
    body = [
        [figures.visible(character), *(page.percent(row[name]) for name in ratios), str(row["support"])]
        for character, row in summary["classes"].items()
    ]
    support = str(sum(row["support"] for row in summary["classes"].values()))
    foot = [
        [title, *(page.percent(summary["averages"][name].get(key)) for key in ratios), support]
        for name, title in (("macro", "Macro average"), ("weighted", "Weighted average"))
    ]
    return page.table(["Character", "Precision", "Recall", "F1", "Support"], body, foot, numbers=True)


def _mistakes(
    run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None
) -> list[page.Block]:
    total = summary["num_images"] - summary["num_exact_match"]
    picture = run.path("figures", f"mistakes_{name}.png")
    if rows is None and total and filesystem.exists(picture):
        figure = page.figure(run, f"mistakes_{name}", f"Mistakes in split {name}", filesystem.read(picture))
        return [page.paragraph(f"Mistakes: {total}."), figure]
    if not rows:
        filesystem.delete(picture)
        return [page.paragraph(NO_MISTAKES if total == 0 else f"Mistakes: {total}. No picture of them was kept.")]
    rows = rows[: figures.MAX_MISTAKES]
    table = page.table(
        ["Number", "Truth", "Prediction", "Confidence", "Image"],
        [
            [str(n), figures.visible(row.truth), figures.visible(row.prediction), page.percent(row.confidence), row.uri]
            for n, row in enumerate(rows, start=1)
        ],
    )
    return [
        page.paragraph(f"Mistakes: {total}. Shown: {len(rows)}, worst first."),
        page.figure(run, f"mistakes_{name}", f"Mistakes in split {name}", figures.mistakes(rows)),
        page.details("The same as a table", table),
    ]


def _training(run: RunDirectory, epochs: list[dict[str, Any]]) -> page.Block:
    parts = [
        page.figure(run, "loss", "Loss against the epoch", figures.loss_curves(epochs)),
        page.figure(run, "accuracy", "Accuracy against the epoch", figures.accuracy_curves(epochs)),
    ]
    if figures.num_positions(epochs) > 1:
        alt = "Accuracy per position against the epoch; solid for validation, dashed for training"
        parts.append(page.figure(run, "positions", alt, figures.position_curves(epochs)))
    return page.section("Training", *parts)


def _durations(seconds: float | None, epochs: list[dict[str, Any]]) -> dict[str, str]:
    """Return durations for a person. seconds: of the last session, None if unknown."""
    rows = {"Last session of the training, with start-up": page.duration(seconds)}
    if epochs:
        rows["Epochs"] = str(len(epochs))
        rows["All epochs"] = page.duration(_total(epochs, "seconds"))
        rows["Images per second, mean of epochs"] = page.number(_mean(epochs, "images_per_second"), ",.0f")
        rows["Share of time waiting for data, mean of epochs"] = page.percent(_mean(epochs, "data_wait_fraction"))
    return rows


def _total(epochs: list[dict[str, Any]], field: str) -> float | None:
    known = [epoch[field] for epoch in epochs if epoch.get(field) is not None]
    return sum(known) if known else None


def _mean(epochs: list[dict[str, Any]], field: str) -> float | None:
    known = [epoch[field] for epoch in epochs if epoch.get(field) is not None]
    return sum(known) / len(known) if known else None
