"""Kills a search at ten random moments: the same command finishes it, with no trial lost or run twice."""

import dataclasses
import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.factories import SHORT_RECIPE
from tests.support.processes import Job, kill, preprocessed

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))
NUM_TRIALS, NUM_EPOCHS = 6, 60

SLOW = dataclasses.replace(SHORT_RECIPE, learning_rate=1e-4)
"""A learning rate so low that another trial is the best, and is compared with this one."""

EPOCHS_IN_ALL = 220
"""Epochs that a search takes at least, with its comparison; a kill comes after any of them."""

TITLES = {
    "driver": ["jobs/tune.py"],
    "worker": ["ray::ResourceTrainable", "ray::train_in_full"],
    "node": ["/raylet/raylet"],
}


@pytest.mark.parametrize("number", range(10))
def test_no_trial_is_lost_or_run_twice_after_a_kill(number: int, tmp_path: Path) -> None:
    moment = random.Random(f"{SEED}-{number}")
    kind = ("driver", "worker", "node")[number % 3]
    shards = preprocessed(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({**SLOW.to_dict(), "shards": str(shards)}))
    tries = 0
    while True:  # until there was something to kill at that moment
        run = tmp_path / f"run{tries}"
        command = ("--recipe", tmp_path / "recipe.json", "--shards", shards, "--run", run, "--final-seeds", "1")
        command = (*command, "--num-trials", str(NUM_TRIALS), "--epochs", str(NUM_EPOCHS))
        after = moment.randrange(EPOCHS_IN_ALL)
        with Job("tune", *command, cwd=tmp_path) as first:
            while num_epochs(run) < after and first.process.poll() is None:
                time.sleep(0.05)
            victims = [pid for title in TITLES[kind] for pid in first.pids(title)]
            if first.process.poll() is None and victims:
                kill(moment.choice(victims))
                if kind != "driver":
                    status = first.wait()
                    assert status == 0 or kind == "node", f"a lost worker ended the search: {first.said}"
                break
        tries += 1
    outcomes = {path: path.read_text() for path in run.glob("trials/*/outcome.json")}
    finished = {path: text for path, text in outcomes.items() if json.loads(text)["status"] == "finished"}
    before = {path: path.read_text().splitlines() for path in run.glob("*/*/metrics.jsonl")}
    with Job("tune", *command, "--resume", cwd=tmp_path) as second:
        assert second.wait() == 0, second.said
    print(f"kill {number}: {kind} after {after} epochs; {len(outcomes)} of {NUM_TRIALS} trials had been judged")
    assert {path: path.read_text() for path in finished} == finished
    for path, lines in before.items():
        assert path.read_text().splitlines()[: len(lines)] == lines, "an epoch was run twice"
    for path in run.glob("*/*/metrics.jsonl"):
        epochs = [json.loads(line)["epoch"] for line in path.read_text().splitlines()]
        assert epochs == list(range(1, len(epochs) + 1))
    table = [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/outcome.json"))]
    assert len(table) == NUM_TRIALS
    assert {outcome["status"] for outcome in table} <= {"finished", "stopped"}
    assert (run / "_SUCCESS").exists()


def num_epochs(run: Path) -> int:
    """Count the epochs of all trainings so far."""
    return sum(len(path.read_text().splitlines()) for path in run.glob("*/*/metrics.jsonl"))
