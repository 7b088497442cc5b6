"""One page that tells how well a run reads: `report.html` and the pictures in `figures/`. Measures nothing itself."""

from collections.abc import Mapping, Sequence
from typing import Any

from captcha_ray import figures, page, storage
from captcha_ray.metrics import Mistake
from captcha_ray.runs import RunDirectory

NO_MISTAKES = "No mistakes on this split."


def write(run: RunDirectory, results: Mapping[str, Any], mistakes: Mapping[str, Sequence[Mistake]]) -> str:
    """Writes `report.html` and `figures/*.png` of a run; gives the URI of the page.

    results: `ReadingCounts.summary()` per split name, and anything else worth a line; "seconds" is how long it took.
    mistakes: per split name, worst first; kept in that order. A split without an entry keeps the picture it has.
    `config.json`, `environment.json` and `metrics.jsonl` are shown where the folder has them. Raises InputError where
    one is there and is not JSON, OSError where the folder cannot be written.
    """
    epochs = run.read_metrics()
    splits = {name: value for name, value in results.items() if isinstance(value, dict) and "num_images" in value}
    rest = {name: value for name, value in results.items() if name not in splits}
    parts = [_split(run, name, summary, mistakes.get(name)) for name, summary in splits.items()]
    if epochs:
        parts.append(_training(run, epochs))
    parts.append(page.section("How long it took", page.pairs(_durations(rest.pop("seconds", None), epochs))))
    if rest:
        parts.append(page.section("Other results", page.pairs(page.flat(rest))))
    parts += page.origins(run)
    return page.write(run, "Report", parts)


def _split(run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None) -> str:
    confusion = figures.confusion_matrix(**summary["confusion"])
    return page.section(
        f"Split {name}",
        page.pairs(_measures(summary)),
        "<h3>Mistakes</h3>",
        _mistakes(run, name, summary, rows),
        "<h3>Confusion of characters</h3>",
        page.figure(run, f"confusion_{name}", f"Confusion matrix of split {name}: truth by reading", confusion),
        "<h3>Characters</h3>",
        _classes(summary),
    )


def _measures(summary: Mapping[str, Any]) -> dict[str, str]:
    exact = page.percent(summary["exact_match"])
    if summary["exact_match_ci95"] is not None:
        low, high = summary["exact_match_ci95"]
        exact += f" ({summary['num_exact_match']} of {summary['num_images']}; "
        exact += f"95% interval {page.percent(low)} to {page.percent(high)})"
    positions = enumerate(summary["position_accuracy"], start=1)
    return {
        "Images": str(summary["num_images"]),
        "Loss, nats per image": page.number(summary["loss"], ".4f"),
        "Character accuracy": page.percent(summary["char_accuracy"]),
        "Whole-string accuracy": exact,
        **{f"Accuracy at position {position}": page.percent(value) for position, value in positions},
    }


def _classes(summary: Mapping[str, Any]) -> str:
    """Precision, recall, F1 and support per character, in the alphabet's order, and their averages."""
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
    return page.table(["Character", "Precision", "Recall", "F1", "Support"], body, foot, "numbers")


def _mistakes(run: RunDirectory, name: str, summary: Mapping[str, Any], rows: Sequence[Mistake] | None) -> str:
    total = summary["num_images"] - summary["num_exact_match"]
    picture = run.path("figures", f"mistakes_{name}.png")
    if rows is None and total and storage.exists(picture):
        figure = page.figure(run, f"mistakes_{name}", f"Misread images of split {name}", storage.read(picture))
        return page.paragraph(f"Mistakes: {total}.") + "\n" + figure
    if not rows:
        storage.delete(picture)
        return page.paragraph(NO_MISTAKES if total == 0 else f"Mistakes: {total}. No picture of them was kept.")
    rows = rows[: figures.MAX_MISTAKES]
    table = page.table(
        ["Number", "Truth", "Reading", "Confidence", "Image"],
        [
            [str(n), figures.visible(row.truth), figures.visible(row.reading), page.percent(row.confidence), row.uri]
            for n, row in enumerate(rows, start=1)
        ],
    )
    return "\n".join(
        [
            page.paragraph(f"Mistakes: {total}. Shown: {len(rows)}, worst first."),
            page.figure(run, f"mistakes_{name}", f"Misread images of split {name}", figures.mistakes(rows)),
            f"<details>\n<summary>The same as a table</summary>\n{table}\n</details>",
        ]
    )


def _training(run: RunDirectory, epochs: list[dict[str, Any]]) -> str:
    parts = [
        page.figure(run, "loss", "Loss against the epoch", figures.loss_curves(epochs)),
        page.figure(run, "accuracy", "Accuracy against the epoch", figures.accuracy_curves(epochs)),
    ]
    if figures.num_slots(epochs) > 1:
        alt = "Accuracy per position against the epoch; solid for validation, dashed for training"
        parts.append(page.figure(run, "slots", alt, figures.slot_curves(epochs)))
    return page.section("Training", *parts)


def _durations(seconds: float | None, epochs: list[dict[str, Any]]) -> dict[str, str]:
    """seconds: of training, with start-up, None where unknown."""
    rows = {"Training, with start-up": page.duration(seconds)}
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
