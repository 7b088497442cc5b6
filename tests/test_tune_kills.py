"""Ten kills of a search at random moments: each ends, by the same command, with no trial lost or run twice."""

import json
import os
import random
import time
from pathlib import Path

import pytest

from tests.processes import Job, kill
from tests.test_search import RECIPE, preprocessed

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("CAPTCHA_RAY_KILL_SEED", "0"))
NUM_TRIALS, NUM_EPOCHS = 6, 60

LONGEST_S = 20.0
"""A whole search of these takes about so long here; a kill comes at any moment of it."""

TITLES = {
    "driver": ["jobs/tune.py"],
    "worker": ["ray::ResourceTrainable", "ray::_train_in_full"],
    "node": ["/raylet/raylet"],
}


@pytest.mark.parametrize("number", range(10))
def test_no_trial_is_lost_or_run_twice_after_a_kill(number: int, tmp_path: Path) -> None:
    moment = random.Random(f"{SEED}-{number}")
    kind = ("driver", "worker", "node")[number % 3]
    shards = preprocessed(tmp_path)
    (tmp_path / "recipe.json").write_text(json.dumps({**RECIPE.to_dict(), "shards": str(shards)}))
    tries = 0
    while True:  # until there was something to kill at that moment
        run = tmp_path / f"run{tries}"
        command = ("--recipe", tmp_path / "recipe.json", "--shards", shards, "--run", run, "--final-seeds", "1")
        command = (*command, "--num-trials", str(NUM_TRIALS), "--epochs", str(NUM_EPOCHS))
        after = moment.uniform(2.0, LONGEST_S)
        with Job("tune", *command, cwd=tmp_path) as first:
            deadline = time.monotonic() + after
            while time.monotonic() < deadline and first.process.poll() is None:
                time.sleep(0.05)
            victims = [pid for title in TITLES[kind] for pid in first.pids(title)]
            if first.process.poll() is None and victims:
                kill(moment.choice(victims))
                if kind != "driver":
                    first.wait()
                break
        tries += 1
    ended = {path: path.read_text() for path in run.glob("trials/*/outcome.json")}
    before = {path: path.read_text().splitlines() for path in run.glob("*/*/metrics.jsonl")}
    begun = (run / "config.json").exists()
    with Job("tune", *command, *(["--resume"] if begun else []), cwd=tmp_path) as second:
        assert second.wait() == 0, second.said
    print(f"kill {number}: {kind} after {after:.1f} s; {len(ended)} of {NUM_TRIALS} trials had ended")
    assert {path: path.read_text() for path in ended} == ended
    for path, lines in before.items():
        assert path.read_text().splitlines()[: len(lines)] == lines, "an epoch was run twice"
    table = [json.loads(path.read_text()) for path in sorted(run.glob("trials/*/outcome.json"))]
    assert len(table) == NUM_TRIALS
    assert {outcome["status"] for outcome in table} <= {"finished", "stopped"}
    assert (run / "_SUCCESS").exists()
