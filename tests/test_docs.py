"""Checks every command, link and program in the documents, without running them."""

import ast
import re
from pathlib import Path

import duckdb
import pytest

from captcha_ray.recipes.config import TrainConfig
from captcha_ray.runs.directory import to_json
from tests.support.commands import check_ray_command, job_lines, parsed, shell_lines

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / "cluster/README.md", ROOT / "cluster/SIZING.md"]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """Return the blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the anchors that a code host gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text()) <= 8000


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_commands_are_as_jobs_and_ray_want_them(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/search").mkdir(parents=True)
    (tmp_path / "runs/search/best.json").write_bytes(to_json(TrainConfig().to_dict()))  # as the search leaves it
    lines = [line for line in shell_lines(path.read_text()) if "..." not in line]
    for line in lines:
        for job, arguments in job_lines(line.partition(" #")[0]):
            parsed(job, arguments)
        if line.startswith("ray "):
            check_ray_command(line)


def test_the_documents_use_all_jobs_and_commands_are_found() -> None:
    jobs = {job for path in PAGES for line in shell_lines(path.read_text()) for job, _ in job_lines(line)}
    assert jobs >= {"preprocess", "train", "evaluate", "tune", "infer"}
    assert job_lines("a=1 captcha-ray train --run r | tee log") == [("train", ["--run", "r"])]
    assert job_lines("python jobs/infer.py --match '\\.png$' && x") == [("infer", ["--match", "\\.png$"])]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", path.read_text(), re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
        file, _, anchor = target.partition("#")
        linked = (path.parent / file) if file else path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:captcha_ray|tests|benchmarks|jobs|cluster|docs)/[\w./-]+\.\w+)`", path.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_programs_are_python_and_queries_are_sql(path: Path) -> None:
    for program in blocks(path, "python"):
        ast.parse(program)
    for query in blocks(path, "sql"):
        assert len(duckdb.extract_statements(query)) >= 1


def test_what_is_wrong_is_found() -> None:
    with pytest.raises(SystemExit):
        parsed("train", ["--no-such-flag"])
    with pytest.raises(AssertionError):
        check_ray_command("ray job submit --no-such-flag -- python jobs/train.py")
