"""The chat: piped, in a real terminal, and what a model's output may do to it."""

from __future__ import annotations

import io
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from parallelmind import BranchResult, Event
from parallelmind.cli.chat import _BUNDLED
from parallelmind.cli.columns import show_branches
from parallelmind.cli.main import main
from parallelmind.cli.terminal import printable
from tests.programs import command_line

STORY = "Story: The age of Dan is 26. The hat costs 91 dollars. Emma likes blue. Tina counted 36 coins.\n"
COMMAND = [sys.executable, "-m", "parallelmind", "chat", "--base_model", "tiny", "--dtype", "float32"]
COMMAND += ["--temperature", "0", "--repetition_penalty", "1"]
SECONDS = 300


class Terminal:
    """The chat on a pseudo-terminal of 100 x 30."""

    def __init__(self, *more: str) -> None:
        pid, self._fd = pty.fork()
        if pid == 0:
            os.environ.update(TERM="xterm-256color", COLUMNS="100", LINES="30")
            os.execv(sys.executable, [*COMMAND, *more])
        self._pid = pid
        self.seen = ""
        self._position = 0

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> str:
        """Read until the text comes; returns what came up to its end."""
        deadline = time.monotonic() + SECONDS
        start = self._position
        while text not in self.seen[start:]:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} did not come; there was {self.seen[start:]!r}")
            try:
                self.seen += os.read(self._fd, 65536).decode(errors="replace")
            except OSError:  # the program ended
                raise AssertionError(f"ended before {text!r}; there was {self.seen[start:]!r}") from None
        self._position = self.seen.index(text, start) + len(text)
        return self.seen[start : self._position]

    def wait_until_it_waits(self) -> None:
        """Python's readline misses a signal that comes just before it begins to wait for the next key."""
        deadline = time.monotonic() + SECONDS
        while Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def exit_code(self) -> int:
        try:
            while os.read(self._fd, 65536):
                pass
        except OSError:
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])

    def kill(self) -> None:
        try:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def talked(capsys: pytest.CaptureFixture[str], text: str, *more: str) -> str:
    """What the chat shows for the same input in this process."""
    with command_line("parallelmind", *COMMAND[3:], *more, stdin=text):
        assert main([*COMMAND[3:], *more]) == 0
    return capsys.readouterr().out


def test_piped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "story.txt").write_text(STORY, encoding="utf-8-sig")  # as editors of Windows save it
    script = f"""/main < {tmp_path}/story.txt
How old is Dan?
/branches
How much does the hat cost?
How old is Dan?

/join
/preset nonsense
/set temperature -1
/set top_k many
/nonsense
/main < /nowhere
/set top_k 7
/clear
/main \"\"\"
{STORY}\"\"\"
How much does the hat cost?
/system one \\
two"""
    with command_line("parallelmind", *COMMAND[3:], stdin=script.encode() + b"\n\xff\xfe\n"):
        assert main(COMMAND[3:]) == 0
    out, err = capsys.readouterr()
    assert "User: Assistant: 26\nUser: " in out
    assert "[1] How much does the hat cost?\n91\n[2] How old is Dan?\n26\n" in out
    assert "2 questions and their answers are part of the conversation" in out
    assert "top_k 7," in out
    assert "User: Assistant: 91\nUser: ... system message: one \ntwo\n" in out
    for message in (
        "error: there is no preset 'nonsense'",
        "error: temperature is -1.0; it must be from 0 to 100.",
        "error: top_k is 'many'; it must be a whole number",
        "error: there is no command /nonsense",
        "error: /main < /nowhere: cannot be read",
    ):
        assert message in err
    assert "Traceback" not in err


def test_an_empty_answer_says_so_and_what_the_bundled_model_can(capsys: pytest.CaptureFixture[str]) -> None:
    old, cost = "How old is Dan?", "How much does the hat cost?"
    script = ["/main " + STORY.rstrip(), old, old, cost, "/branches", old, cost, "", "/join", ""]
    out = talked(capsys, "\n".join(script), "--stop", " 26")
    first, second, third = out.split("User: Assistant: ")[1:]
    assert first.splitlines()[0] == second.splitlines()[0] == "(the model answered nothing)"
    assert "/main Story: " in first
    assert "/main" not in second  # once is enough
    assert third.startswith("91\n")
    assert f"[1] {old}\n(the model answered nothing)\n[2] {cost}\n91\n" in third
    assert "2 questions and their answers (the model answered nothing to 1 of them) are part" in third
    assert third.endswith("\n再见！\n")


def test_the_example_of_the_bundled_model_works(capsys: pytest.CaptureFixture[str]) -> None:
    example = [line.strip() for line in _BUNDLED.splitlines()[1:]]
    out = talked(capsys, "\n".join([*example, "quit"]))
    assert out.endswith("User: Assistant: 26\nUser: 再见！\n")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    # The answers go on until they are stopped.
    started = Terminal("--ignore_eos", "--max_new_tokens", "1900")
    yield started
    started.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_in_a_terminal(terminal: Terminal) -> None:
    assert _BUNDLED.splitlines()[1].strip() in terminal.expect("User: ")
    terminal.type("\x1b[200~How old\nis Dan?\x1b[201~\r")  # pasted: one message of two lines
    terminal.expect("Assistant: ")
    terminal.type("\x03")
    terminal.expect(" [stopped]")
    terminal.expect("User: ")
    terminal.type("/main " + STORY.replace("\n", "\r"))
    terminal.expect("tokens in use")
    terminal.type("/branches\r")
    for number, question in enumerate(["How old is Dan?", "How much does the hat cost?", ""], start=1):
        terminal.expect(f"Branch {number}: ")
        terminal.type(question + "\r")
    before = terminal.expect("─ branch 2 ─")
    assert "─ branch 1 ─" in before.rpartition("\n")[2]  # in the same line: side by side
    terminal.type("\x03")
    assert "[stopped]" in terminal.expect("/join makes them part")
    terminal.expect("User: ")
    terminal.type("/branches\r")
    terminal.expect("Branch 1: ")
    terminal.wait_until_it_waits()
    terminal.type("\x03")
    terminal.expect("User: ")
    terminal.type("\r")
    terminal.expect("User: ")
    terminal.type("half a line")
    terminal.expect("half a line")
    terminal.wait_until_it_waits()
    terminal.type("\x03")
    terminal.expect("Ctrl-C again quits.")
    terminal.expect("User: ")
    terminal.wait_until_it_waits()
    terminal.type("\x03")
    assert terminal.exit_code() == 130


def test_control_characters_are_shown_not_obeyed() -> None:
    hostile = "a\x1b]0;title\x07\x1b[2J\x9b31m\x7f\rb\u202ec\td\ne\ud800"
    safe = printable(hostile)
    assert safe == "a␛]0;title␇␛[2J‹9b›31m␡b‹202e›c\td\ne‹d800›"
    assert printable("Grüße, 你好, مرحبا, 👩‍👩‍👧") == "Grüße, 你好, مرحبا, 👩‍👩‍👧"


def events(*pieces: tuple[int, str]) -> Iterator[Event]:
    for index, text in pieces:
        yield Event(request_index=0, branch_index=index, text=text)
    for index in sorted({index for index, _ in pieces}):
        result = BranchResult(finish_reason="stop")
        yield Event(request_index=0, branch_index=index, finish_reason="stop", result=result)


def console(width: int, *, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, height=20, force_terminal=terminal, highlight=False), out


def test_columns_show_markup_and_wide_characters_as_they_are() -> None:
    plain, out = console(80, terminal=True)
    show_branches(
        plain, ["[red]q[/red]", "问题" * 20], events((0, "[bold]x[/"), (1, "你好" * 30 + "6" * 99), (0, "\x1b[31mred"))
    )
    final = out.getvalue().rpartition("\x1b[?25h")[2]
    lines = [line for line in final.splitlines() if line.strip()]
    assert "[red]q[/red]" in final
    assert final.count("6") == 99
    assert "[bold]x[/␛[31mred" in final
    assert "\x1b[31m" not in out.getvalue()
    from rich.cells import cell_len
    from rich.text import Text

    assert {
        cell_len(Text.from_ansi(line).plain.rstrip()) for line in lines if "branch 2" in line or "你好" in line
    } == {80}


def test_a_narrow_terminal_gets_one_branch_below_the_other() -> None:
    narrow, out = console(40, terminal=True)
    show_branches(narrow, ["one", "two"], events((1, "second"), (0, "first")))
    assert [word for word in out.getvalue().split() if word in ("first", "second")] == ["first", "second"]
    assert "─" not in out.getvalue()


def test_empty_branches_say_so() -> None:
    for is_terminal in (False, True):
        plain, out = console(80, terminal=is_terminal)
        show_branches(plain, ["one", "two"], events((0, " \n"), (1, "word")))
        assert out.getvalue().count("(the model answered nothing)") == 1


def test_stopped_branches_say_so() -> None:
    plain, out = console(80, terminal=False)
    branches = show_branches(plain, ["one", "two"], [Event(request_index=0, branch_index=1, text="half")])
    assert out.getvalue().splitlines() == ["[1] one", " [stopped]", "[2] two", "half [stopped]"]
    assert branches.texts == ["", "half"]
