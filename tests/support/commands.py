"""Finds the commands of documents and manifests, and checks them as the jobs and Ray's command line would."""

import re
import shlex
import sys
from typing import Any

import click
import pytest
from ray.scripts.scripts import cli as ray_cli

from captcha_ray import cli, console

COMMAND = re.compile(
    r"(?:python jobs/(?=\w+\.py)|(?<![\w/.-])captcha-ray (?=[a-z]+(?: --|$)))"
    r"""(\w+)(?:\.py)?((?: +(?:'[^'\n]*'|[^\s|;&<>"`'#]+))*)""",
    re.MULTILINE,
)


class _ParsedError(BaseException):
    """Carries the config out of a job as soon as it is parsed."""


def parsed(job: str, arguments: list[str]) -> Any:
    """Return the config that a job makes of a command line; nothing is done. Raises SystemExit for a bad one."""
    real = console.parse

    def stop(*given: Any, **named: Any) -> None:
        raise _ParsedError(real(*given, **named))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "parse", stop)
        patch.setattr(sys, "argv", [f"jobs/{job}.py", *arguments])
        try:
            cli.VERBS[job]()
        except _ParsedError as error:
            return error.args[0]
    raise AssertionError(f"jobs/{job}.py parses no arguments")


def job_lines(text: str) -> list[tuple[str, list[str]]]:
    """Return all `python jobs/NAME.py ARGUMENTS` and `captcha-ray NAME ARGUMENTS` of a text: (NAME, ARGUMENTS)."""
    joined = re.sub(r"\\\n\s*", "", text)
    return [(job, shlex.split(arguments)) for job, arguments in COMMAND.findall(joined)]


def shell_lines(text: str) -> list[str]:
    """Return the commands in the shell blocks of a Markdown text, without comments, continued lines joined."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    return [line for line in re.sub(r"\\\n\s*", "", blocks).splitlines() if line and not line.startswith("#")]


def check_ray_command(line: str) -> None:
    """Fail if Ray's command line has no such command or options."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("--")] if "--" in words else words
    command: Any = ray_cli
    while isinstance(command, click.Group):
        name = words.pop(0)
        command = command.get_command(click.Context(command), name)
        assert command, f"ray has no command {name}: {line}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        assert not word.startswith("-") or word.partition("=")[0] in known, f"{word} is unknown: {line}"
