"""What a person at a terminal or in a log sees: statuses, one-sentence errors, progress without a terminal."""

import datetime
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
import rich.console

from captcha_ray import console
from captcha_ray.errors import InputError
from captcha_ray.recipes.config import TrainConfig
from captcha_ray.training.progress import EpochDone, StepDone, TrainingProgress, WorkersBegan
from captcha_ray.tuning import progress as tuning_progress


def raising(error: BaseException) -> Callable[[], None]:
    def job() -> None:
        raise error

    return job


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what is printed where output is no terminal."""
    stream = io.StringIO()
    monkeypatch.setattr(console, "OUT", rich.console.Console(file=stream, highlight=False, soft_wrap=True))
    return stream


def test_a_job_that_is_done_ends_with_status_0_and_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    console.run(lambda: None)
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_one_sentence_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        console.run(raising(InputError("height is 3; it must be 4 to 4096 pixels")))
    assert caught.value.code == 2
    assert capsys.readouterr() == ("", "error: height is 3; it must be 4 to 4096 pixels\n")


def test_an_interrupt_is_one_sentence_and_status_130(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        console.run(raising(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert (
        capsys.readouterr().err
        == "error: interrupted; what was finished is kept, the same command goes on (a training: with --resume)\n"
    )


TERMINATED = """
import os, signal, sys
from captcha_ray import console
from captcha_ray.runtime import ray_session
def end(asked):
    if asked:
        os.kill(os.getpid(), signal.SIGTERM)
def job():
    end(sys.argv[1] == "before")
    init = ray_session.ray.init
    ray_session.ray.init = lambda *args, **options: (init(*args, **options), end(sys.argv[1] == "while Ray starts"))
    with ray_session.connect():
        end(sys.argv[1] == "inside")
        try:
            end(sys.argv[1] == "within Ray Train")
        except KeyboardInterrupt:
            raise KeyboardInterrupt("another one")
    end(sys.argv[1] == "after")
console.run(job)
"""


@pytest.mark.parametrize("moment", ["before", "while Ray starts", "inside", "within Ray Train", "after"])
def test_sigterm_is_one_sentence_and_status_143(moment: str) -> None:
    """Ray has a way of its own to end by it."""
    command = [sys.executable, "-c", TERMINATED, moment]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 143
    assert result.stderr.startswith("error: interrupted; what was finished is kept")
    assert len(result.stderr.splitlines()) == 1


def test_a_failure_shows_where_it_came_from_then_a_sentence_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        console.run(raising(OSError("the disk is full")))
    assert caught.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "error: OSError: the disk is full"


JOB = """
from captcha_ray import console
from captcha_ray.datasets.config import PreprocessConfig
console.run(lambda: console.say(console.parse(PreprocessConfig).out))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "out", "err"),
    [
        (["--out", "/x [bold]y[/bold]"], 0, "/x [bold]y[/bold]\n", ""),
        (["--height", "3"], 2, "", "height is 3; it must be 4 to 4096 pixels"),
        (["--colour", "1"], 2, "", "--colour"),
        (["--labels", "folders"], 2, "", "folders"),
        (["--help"], 0, "--label-pattern", ""),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_a_process_ends_with_the_status_of_its_arguments(arguments: list[str], status: int, out: str, err: str) -> None:
    command = [sys.executable, "-c", JOB, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == status, result.stderr
    assert out in result.stdout
    assert err in result.stderr
    assert "Traceback" not in result.stderr
    assert bool(err) == bool(result.stderr)


def test_help_says_what_every_field_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--help"])
    with pytest.raises(SystemExit) as caught:
        console.parse(TrainConfig)
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for name in TrainConfig().to_dict():
        assert f"--{name.replace('_', '-')}" in said


def test_arguments_change_the_default_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3", "--use-gpu", "--network", "multi_head_cnn"])
    default = TrainConfig(batch_size=7, epochs=9)
    assert console.parse(TrainConfig, default) == TrainConfig(
        batch_size=7, epochs=3, use_gpu=True, network="multi_head_cnn"
    )


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ([], "default"),
        (["--epochs", "3"], "default"),
        (["--recipe", "wmail", "--epochs", "3"], "wmail"),
        (["--epochs", "3", "--recipe=isfahan"], "isfahan"),
        (["--recipe", "wmail", "--recipe=isfahan"], "isfahan"),
        (["--recipe=", "--epochs", "3"], ""),
        (["--recipe"], "default"),
        (["--recipes", "wmail"], "default"),
    ],
    ids=" ".join,
)
def test_an_option_is_found_before_the_rest_is_parsed(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], value: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert console.option("recipe", "default") == value


@pytest.mark.parametrize(
    "arguments", [["--recipe", "a"], ["--recipe=a"], ["--recipe", "a", "--recipe", "b"]], ids=" ".join
)
def test_an_option_is_what_parsing_finds(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    assert console.parse(TrainConfig).recipe == console.option("recipe", "default")


def test_progress_in_a_log_ends_in_a_line_with_the_total(log: io.StringIO) -> None:
    with console.progress("decode", 3000, "images") as advance:
        advance(1000)
        advance(234)
    lines = log.getvalue().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("decode: 1,234 images in ")
    assert lines[0].endswith(" images/s)")


def test_progress_of_nothing_is_told_too(log: io.StringIO) -> None:
    with console.progress("decode", 0, "images"):
        pass
    assert log.getvalue().startswith("decode: 0 images in 0.")


def test_training_in_a_log_is_one_line_an_epoch(log: io.StringIO) -> None:
    record = {
        "train_loss": 0.5,
        "val_loss": 0.25,
        "train_char_accuracy": 0.5,
        "val_char_accuracy": 0.75,
        "val_exact_match": 1.0,
        "images_per_second": 1234.0,
    }
    with TrainingProgress(2) as progress:
        progress.show(WorkersBegan(0, 2))
        progress.show(StepDone(1, 0.5, 1000.0))
        progress.show(EpochDone({"epoch": 1, **record}, best=True))
        progress.show(WorkersBegan(1, 1))
        progress.show(WorkersBegan(1, 2))
        progress.show(EpochDone({"epoch": 2, **record}, best=False))
    lines = log.getvalue().splitlines()
    assert len(lines) == 4
    assert lines.pop(1) == "workers were lost: training goes on after epoch 1 with 1, it was 2"
    assert lines.pop(1) == "more workers have come: training goes on after epoch 1 with 2, it was 1"
    assert lines[0].startswith(
        "epoch   1/2  loss 0.500 val 0.250  characters 50.00% val 75.00%  strings val 100.00%  1,234 images/s"
    )
    assert [line.endswith("best") for line in lines] == [True, False]


def test_a_search_in_a_log_is_one_line_a_trial_and_marks_the_best(log: io.StringIO) -> None:
    with tuning_progress.SearchProgress(4, 9, 40, ["learning_rate", "optimizer"]) as progress:
        values = {"learning_rate": 0.00123456, "optimizer": "adam"}
        progress.end(0, values, 9, 0.5, 0.5)
        for number, (score, how) in enumerate(((0.25, "stopped"), (0.75, "finished"), (-1.0, "failed: no memory")), 1):
            progress.begin(number, values, 0, 0.0)
            progress.epoch(number, 3, 0.25)
            progress.end(number, values, 3 * number, abs(score), score, how)
        progress.compared("best-0", 0.875, 1, 6)
    lines = log.getvalue().splitlines()
    assert re.fullmatch(
        r"trial   1   25\.00% after   3 epochs, stopped  learning_rate=0\.00123 optimizer=adam  "
        r"\(2/4, \d+:\d\d:\d\d left\)",
        lines[0],
    )
    assert "75.00% after   6 epochs, finished  learning_rate=0.00123 optimizer=adam  best" in lines[1]
    assert "failed: no memory" in lines[2]
    assert "best" not in lines[2]
    assert lines[3:] == ["final best-0     87.50%  (1/6)"]


def test_a_search_at_a_terminal_shows_running_trials_and_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    terminal = rich.console.Console(file=stream, force_terminal=True, width=100, highlight=False)
    monkeypatch.setattr(console, "OUT", terminal)
    with tuning_progress.SearchProgress(4, 9, 40, ["dropout"]) as progress:
        progress.begin(0, {"dropout": 0.1}, 0, 0.0)
        progress.end(0, {"dropout": 0.1}, 9, 0.5, 0.5, "finished")
        progress.begin(1, {"dropout": 0.25}, 4, 0.375)
        progress.epoch(1, 3, 0.125)
    drawn = stream.getvalue()
    assert re.search(r"1\W+4/9\W+37\.50%\W+0\.25", drawn)
    assert re.search(r"best: 0\W+9/9\W+50\.00%\W+0\.1", drawn)


def test_what_is_said_is_printed_as_it_is(log: io.StringIO) -> None:
    console.say("[red]s3://b/x[/red] " + "y" * 300)
    assert log.getvalue() == "[red]s3://b/x[/red] " + "y" * 300 + "\n"


STRUCTURED = """
import sys
from captcha_ray import console
from captcha_ray.inference.config import InferConfig
from captcha_ray.errors import InputError
from captcha_ray.training.progress import EpochDone, TrainingProgress
def job():
    console.parse(InferConfig)
    console.warn("slow")
    with console.progress("read", 10, "objects") as advance:
        advance(7)
    with TrainingProgress(1) as progress:
        record = {"train_loss": 0.5, "train_char_accuracy": 0.25, "images_per_second": 10.0}
        progress.show(EpochDone({"epoch": 1, **record}, best=True))
    raise InputError("no [such] \\"bucket\\": ä")
console.run(job)
"""


def test_structured_lines_bear_job_and_run_and_their_numbers() -> None:
    command = [sys.executable, "-c", STRUCTURED, "--run", "r", "--out", "s3://b/o"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "CAPTCHA_RAY_LOG": "json"}
    )
    assert done.returncode == 2
    told, failed = ([json.loads(line) for line in text.splitlines()] for text in (done.stdout, done.stderr))
    assert [line["level"] for line in told + failed] == ["info", "info", "warning", "error"]
    for line in told + failed:
        assert (line["job"], line["run"], line["out"]) == ("-c", "r", "s3://b/o")
        assert datetime.datetime.fromisoformat(line["time"]).utcoffset() == datetime.timedelta()
    assert (told[0]["done"], told[0]["message"].partition(" in ")[0]) == (7, "read: 7 objects")
    assert (told[1]["epoch"], told[1]["train_loss"], told[1]["images_per_second"]) == (1, 0.5, 10.0)
    assert (failed[1]["message"], failed[1]["status"]) == ('no [such] "bucket": ä', 2)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_structured_lines_are_json_in_any_encoding(encoding: str) -> None:
    program = "from captcha_ray import console; console.say('é אב \\udce9'); console.warn('é אב')"
    env = {**os.environ, "PYTHONIOENCODING": f"{encoding}:surrogateescape", "CAPTCHA_RAY_LOG": "json"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    told, warned = (json.loads(data.decode(encoding, "surrogateescape")) for data in (done.stdout, done.stderr))
    assert (told["message"], warned["message"]) == ("é אב \udce9", "é אב")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "1>&- 2>&-"])
def test_a_job_whose_output_is_closed_ends_as_it_would(closed: str) -> None:
    program = (
        "import sys; from captcha_ray import console\n"
        "def job():\n console.say('a'); console.warn('b'); sys.stderr.flush(); sys.stdout.flush()\n"
        "console.run(job)"
    )
    status = subprocess.run(["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, program], check=False).returncode
    assert status == 0


def test_a_warning_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    console.warn("no GPU here")
    assert capsys.readouterr() == ("", "warning: no GPU here\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_line_is_printed_in_any_encoding(encoding: str) -> None:
    program = "from captcha_ray import console; console.say('é אב 日本 \\udce9'); console.warn('é אב')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode(encoding).strip()
    assert out.encode("ascii", "backslashreplace").startswith(b"\\xe9 \\u05d0")
    assert b"warning: " in done.stderr
