"""Write the report of a search: `report.html` and pictures in `figures/`. Measures nothing itself."""

from collections.abc import Sequence

from captcha_ray.metrics.comparison import Comparison
from captcha_ray.reporting import page
from captcha_ray.reporting.page import duration, percent, text
from captcha_ray.runs.directory import RunDirectory
from captcha_ray.tuning import figures
from captcha_ray.tuning.search_space import Space
from captcha_ray.tuning.trials import SearchResult, Trial, seconds_searched


def write(run: RunDirectory, space: Space, findings: SearchResult) -> str:
    """Write `report.html` and `figures/*.png` of a search and return the URI of the page.

    `config.json` and `environment.json` are shown too.
    """
    found, best, comparison, importance = findings.trials, findings.best, findings.comparison, findings.importance
    parts = [
        page.section(
            "Result",
            page.paragraph(f"{findings.verdict[0].upper()}{findings.verdict[1:]}."),
            page.pairs(_result(best, comparison)),
        ),
        page.section(
            "Best so far", page.figure(run, "best_so_far", "Best score against time", figures.best_so_far(found))
        ),
        page.section(
            "Parameters",
            page.figure(run, "parameters", "Each parameter against the score", figures.parameters(space, found)),
            page.figure(
                run,
                "parallel_coordinates",
                "A line per trial across all parameters",
                figures.parallel_coordinates(space, found, best.number),
            ),
            page.figure(run, "importance", "Importance of each parameter", figures.importance(importance))
            if importance
            else page.paragraph("The trials are too few, or too alike, to tell which parameter matters."),
        ),
        page.section(
            "Learning curves",
            page.figure(
                run,
                "learning_curves",
                "Validation accuracy of all trials",
                figures.learning_curves(found, best.number),
            ),
        ),
        page.section("Trials", page.table(*_rows(space, found), numbers=True)),
        page.section("What it cost", page.pairs(_cost(run, findings))),
        *page.origins(run),
    ]
    return page.write(run, "Search", parts)


def _result(best: Trial, comparison: Comparison | None) -> dict[str, str]:
    rows = {"Best trial": str(best.number), "Whole strings right in the search": percent(best.accuracy)}
    rows |= {name: text(value) for name, value in best.values.items()}
    if comparison:
        rows["Whole strings right, its config"] = percent(comparison.best)
        rows["Whole strings right, the recipe"] = percent(comparison.recipe)
        rows["Validation images, seeds"] = f"{comparison.num_images:,}, {comparison.num_seeds}"
    return rows


def _rows(space: Space, found: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    head = ["Trial", "Strings right", "Epochs", "Seconds", *space, "Status"]
    ranked = sorted(found, key=lambda trial: (-trial.score, trial.number))
    return head, [
        [
            str(trial.number),
            percent(trial.accuracy),
            str(len(trial.epochs)),
            f"{trial.seconds:.1f}",
            *(text(trial.values[name]) for name in space),
            f"{trial.outcome.status}{': ' * bool(trial.outcome.reason)}{trial.outcome.reason}"
            if trial.outcome
            else "running",
        ]
        for trial in ranked
    ]


def _cost(run: RunDirectory, findings: SearchResult) -> dict[str, str]:
    config = run.read_json("config.json")
    cores, gpus = config["workers_per_trial"] * config["cpus_per_worker"], config["gpus_per_trial"]
    epochs = config["epochs"] or config["recipe.epochs"]
    hours = findings.epoch_seconds / 3600
    return {
        "Searching, without the comparison": duration(seconds_searched(findings.trials)),
        "Epochs": f"{findings.num_epochs:,} of {len(findings.trials) * epochs:,}, were no trial stopped",
        "Time of all epochs": duration(findings.epoch_seconds),
        "Core-hours": f"{hours * cores:.3f}",
        **(
            {"Comparison, beside that": f"{2 * findings.comparison.num_seeds} trainings of {epochs} epochs"}
            if findings.comparison
            else {}
        ),
        **({"GPU-hours": f"{hours * gpus:.3f}"} if gpus else {}),
    }
