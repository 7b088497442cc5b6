"""Keep the right epoch of a training."""

from typing import Any

from captcha_ray.training.worker import best_epoch, epochs_without_gain


def test_the_best_epoch_has_most_strings_right_then_most_characters_then_comes_last() -> None:
    def epoch(number: int, strings: float | None = None, characters: float | None = None) -> dict[str, Any]:
        losses = {"train_loss": 1.0, "val_loss": 2.0}
        return {"epoch": number, "val_exact_match": strings, "val_char_accuracy": characters, **losses}

    best, ago = best_epoch, epochs_without_gain
    assert best([epoch(1, 0.5, 0.9), epoch(2, 0.6, 0.7), epoch(3, 0.6, 0.8), epoch(4, 0.5, 0.9)]) == 3
    equals = [epoch(1, 0.5, 0.8), epoch(2, 0.5, 0.8), epoch(3, 0.5, 0.8), epoch(4, 0.4, 0.9)]
    assert best(equals) == 3
    assert ago(equals) == 3, "to read as much as before is no gain"
    assert ago([*equals, epoch(5, 0.5, 0.8) | {"val_loss": 1.0}]) == 0, "but to be surer of it is"
    assert best([epoch(1, 0.0, 0.2), epoch(2, 0.0, 0.1)]) == 1
    unvalidated = [{"epoch": number, "train_loss": 1.0} for number in (1, 2)]
    assert best(unvalidated) == 2, "without validation the last"
    assert best([epoch(1, 0.0, 0.0), epoch(2, 0.0, 0.0) | {"val_loss": None}]) == 1, "no network of nan is kept"
