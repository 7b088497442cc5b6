"""The answers of docs/architecture.md name files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/architecture.md").read_text()
QUESTIONS = [line for line in TEXT.splitlines() if re.match(r"\| \d+\. ", line)]
STEPS = re.findall(r'-->\|"([^"]+)"\|', TEXT)


def names_of(path: Path) -> set[str]:
    """Functions and classes of a module, methods too."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)}


def test_there_are_twenty_questions() -> None:
    assert [int(line.split()[1].rstrip(".")) for line in QUESTIONS] == list(range(1, 21))


@pytest.mark.parametrize("line", QUESTIONS)
def test_an_answer_names_a_file_and_what_it_defines(line: str) -> None:
    answers = re.findall(r"`(captcha_ray/[\w/]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", line)
    assert answers
    for path, functions in answers:
        assert set(re.findall(r"\w+", functions)) <= names_of(ROOT / path), path


@pytest.mark.parametrize("step", [name for step in STEPS for name in step.split("<br>")])
def test_a_step_of_an_image_is_a_module_or_what_it_defines(step: str) -> None:
    parts = step.split(".")
    if parts[0] == "Recognizer":
        parts = ["recognizer", *parts]
    known: set[str] = set()
    for depth in range(1, len(parts) + 1):
        module = (ROOT / "captcha_ray").joinpath(*parts[:depth]).with_suffix(".py")
        if module.exists():
            known = names_of(module)
            assert set(parts[depth:]) <= known
            return
    pytest.fail(f"no module is named by {step}")
