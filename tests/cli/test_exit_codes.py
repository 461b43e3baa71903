"""What `homeserver` exits with, and that an expected error is one message and no traceback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest

from fractal.api import errors
from fractal.api.errors import ExitCode, FractalError
from fractal.cli.main import main
from fractal.testing.control import SampleAgent


def run_main(monkeypatch: pytest.MonkeyPatch, *argv: str) -> int:
    monkeypatch.setattr(sys, "argv", ["homeserver", *argv])
    with pytest.raises(SystemExit) as caught:
        main()
    assert isinstance(caught.value.code, int)
    return int(caught.value.code)


def every_error() -> list[FractalError]:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, FractalError)]
    return [
        kind("store.path", "what happened") if kind is errors.Misconfigured else kind("what happened")
        for kind in kinds
    ]


@pytest.mark.parametrize("error", every_error(), ids=lambda e: type(e).__name__)
def test_each_error_of_the_agent_has_its_exit_code(
    config: Path,
    agent: SampleAgent,
    error: FractalError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent.errors["app.list"] = error
    assert run_main(monkeypatch, "--config", str(config), "app", "list") == error.exit_code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == f"homeserver: {error}"


def test_success_usage_and_the_code_of_a_command(
    config: Path, agent: SampleAgent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, "--config", str(config), "app", "list") == ExitCode.OK
    assert run_main(monkeypatch, "--config", str(config), "app", "list", "--nonsense") == ExitCode.USAGE
    assert run_main(monkeypatch, "app") == ExitCode.USAGE
    agent.results["app.exec"] = {"exit_code": 42, "output": ""}
    assert run_main(monkeypatch, "--config", str(config), "app", "exec", "cal", "false") == 42
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(("answer", "code"), [("n", ExitCode.FAILED), ("y", ExitCode.OK)])
def test_on_a_terminal_the_plan_is_shown_and_a_question_asked(
    config: Path, agent: SampleAgent, answer: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (sys.stdin, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr(click.termui, "visible_prompt_func", lambda _: answer)
    assert run_main(monkeypatch, "--config", str(config), "app", "remove", "cal") == code
    dry = [params.dry_run for _, params in agent.calls]
    assert dry == ([True] if answer == "n" else [True, False])


def test_interrupted(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fractal.client.Client.call", interrupt)
    assert run_main(monkeypatch, "--config", str(config), "app", "list") == ExitCode.INTERRUPTED


@pytest.mark.parametrize(("wait", "code"), [("5", ExitCode.PARTIAL), ("0", ExitCode.OK)])
def test_what_was_waited_for_in_vain_is_partial(
    config: Path, agent: SampleAgent, wait: str, code: ExitCode, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.results["app.start"] = {"app": "a1", "done": False}
    agent.results["snapshot.create"] = {"moment": "", "done": False}
    for words in (["app", "start", "cal"], ["snapshot", "create", "cal"]):
        assert run_main(monkeypatch, "--config", str(config), *words, "--wait", wait) == code


@pytest.mark.parametrize("error", every_error(), ids=lambda e: type(e).__name__)
def test_with_json_an_error_is_one_document(
    config: Path,
    agent: SampleAgent,
    error: FractalError,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent.errors["app.list"] = error
    assert run_main(monkeypatch, "--config", str(config), "-q", "app", "list", "--json") == error.exit_code
    shown = capsys.readouterr()
    told = json.loads(shown.err)["error"]
    assert shown.out == ""
    assert (told["code"], told["message"]) == (error.code, str(error))
    assert told["exit_code"] == error.exit_code


def test_with_json_a_wrong_command_line_is_one_document_too(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run_main(monkeypatch, "--config", str(config), "app", "list", "--json", "--nosuch") == ExitCode.USAGE
    )
    told = json.loads(capsys.readouterr().err)["error"]
    assert told["code"] == "usage"
    assert "--nosuch" in told["message"]
    # After `--` the words are those of the command that is to run in the app.
    assert run_main(monkeypatch, "--config", str(config), "app", "exec", "x", "--", "ls", "--json") != 0
    assert not capsys.readouterr().err.startswith("{")


def test_a_drain_that_is_not_over_is_partial(
    config: Path, agent: SampleAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.results["device.drain"] = {"device": "1", "draining": True, "done": False, "apps": []}
    words = ("--config", str(config), "device", "drain", "Attic", "--wait", "3", "--yes")
    assert run_main(monkeypatch, *words) == ExitCode.PARTIAL
