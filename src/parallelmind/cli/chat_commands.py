"""What a line that begins with / does in a chat."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from parallelmind.cli.chat_input import MessageReader
from parallelmind.cli.columns import show_branches
from parallelmind.cli.terminal import NO_ANSWER, printable, stoppable
from parallelmind.errors import DataError, RequestError, SettingsError
from parallelmind.settings.sampling import PRESETS, SamplingSettings
from parallelmind.settings.setting import described

if TYPE_CHECKING:
    from parallelmind.chat import ChatSession


COMMANDS_HELP = (
    r"""
/main TEXT          set the shared text, /main < FILE from a file; /main shows it, /main - removes it
/branches           ask several questions at once, one a line, an empty line ends; they are answered side by side
/join               make the last branches part of the conversation
/system TEXT        set the system message; /system shows it, /system - removes it
/preset NAME        sampling for a situation: {presets}
/set NAME VALUE     change a sampling setting, such as /set temperature 0.2; /set shows them all
/stats              tokens and speed
/clear              forget the conversation; the shared text and the system message stay
/help               this list
quit, exit, Ctrl-D  end the chat; Ctrl-C stops an answer, twice at the prompt quits
Several lines: end a line with \, or write them between two lines of \"\"\", or paste them.
A message that begins with / is sent with // in front.
""".replace("{presets}", ", ".join(PRESETS))
    .replace(r"\"", '"')
    .lstrip()
)

_SETTINGS = {one.name: one for one in described(SamplingSettings)}


class ChatCommands:
    """The commands of one chat."""

    def __init__(self, session: ChatSession, reader: MessageReader, console: Console) -> None:
        self._session = session
        self._reader = reader
        self._console = console
        self._commands: dict[str, Callable[[str], None]] = {
            "main": self._main,
            "branches": self._branches,
            "join": self._join,
            "system": self._system,
            "preset": self._preset,
            "set": self._set,
            "stats": self._stats,
            "clear": self._clear,
            "help": self._help,
        }

    def run(self, line: str) -> None:
        """Run a line such as "/set temperature 0.2".

        Raises:
            ParallelMindError: the command is unknown or cannot be carried out.
        """
        name, _, rest = line[1:].partition(" ")
        name, newline, below = name.partition("\n")
        command = self._commands.get(name.lower())
        if command is None:
            close = difflib.get_close_matches(name.lower(), self._commands, n=1)
            meant = f"did you mean /{close[0]}?" if close else "/help lists the commands."
            raise SettingsError(f"there is no command /{name}; {meant} A message that begins with / is sent with //.")
        command(below + rest if newline else rest)

    def _main(self, text: str) -> None:
        session = self._session
        if text.strip() == "-":
            session.set_main("")
            self._say("no shared text")
            return
        if text.lstrip().startswith("<"):
            text = _read(text.lstrip()[1:].strip())
        if text.strip():
            session.set_main(text)
        elif session.conversation.main:
            self._console.out(printable(session.conversation.main).rstrip("\n"), highlight=False)
        if session.conversation.main:
            self._say(f"shared text of {len(session.conversation.main)} characters, {self._length()}")
        else:
            self._say("no shared text; /main TEXT or /main < FILE sets one")

    def _branches(self, text: str) -> None:
        questions = [line for line in text.splitlines() if line.strip()]
        try:
            while not text and (question := self._reader.read(f"Branch {len(questions) + 1}: ")).strip():
                questions += [line for line in question.splitlines() if line.strip()]
        except EOFError:  # The input ends here; the text typed so far is the question.
            print()
        if not questions:
            self._say("no question, nothing asked")
            return
        with stoppable() as stop:
            events = stop.cuts(self._session.branch(questions))
            show_branches(self._console, questions, events)
        self._say("/join makes them part of the conversation")

    def _join(self, text: str) -> None:
        joined = self._session.join()
        if not joined:
            raise RequestError("there are no branches to join; ask some with /branches first.")
        empty = sum(not (exchange.answer or "").strip() for exchange in self._session.conversation.exchanges[-joined:])
        without = f" {NO_ANSWER[:-1]} to {empty} of them)" if empty else ""
        self._say(f"{joined} questions and their answers{without} are part of the conversation now, {self._length()}")

    def _system(self, text: str) -> None:
        conversation = self._session.conversation
        if text.strip():
            conversation.system = "" if text.strip() == "-" else text.strip()
        shown = printable(conversation.system)
        self._say(f"system message: {shown}" if shown else "no system message")

    def _preset(self, text: str) -> None:
        name = text.strip()
        if name not in PRESETS:
            raise SettingsError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}.")
        self._session.sampling = replace(self._session.sampling, **PRESETS[name])
        self._say(self._settings())

    def _set(self, text: str) -> None:
        if text.strip():
            name, value = re.match(r"(\w*)[\s=]*(.*)", text.strip(), re.DOTALL).groups()  # type: ignore[union-attr]
            self._session.sampling = replace(self._session.sampling, **{name: self._parsed(name, value.strip())})
        self._say(self._settings())

    def _parsed(self, name: str, value: str) -> Any:
        if name not in _SETTINGS:
            raise SettingsError(f"there is no setting {name!r}; there are {', '.join(_SETTINGS)}.")
        if value.lower() == "none" and (_SETTINGS[name].optional or _SETTINGS[name].kind is tuple):
            return None
        try:
            return _SETTINGS[name].parse_item(value)
        except ValueError as error:
            raise SettingsError(f"{name} {error}") from None

    def _settings(self) -> str:
        sampling = self._session.sampling
        return ", ".join(f"{name} {getattr(sampling, name)}" for name in _SETTINGS)

    def _stats(self, text: str) -> None:
        stats, last = self._session.engine.stats, self._session.last_stats
        self._say(
            f"{len(self._session.conversation.exchanges)} turns, {self._length()}; since the start: "
            f"{stats.generated_tokens} tokens written, {stats.prompt_tokens} read, {stats.cached_main_tokens} reused"
        )
        if last is not None:
            self._say(
                f"last answer: {last.tokens} tokens in {last.seconds:.2f} s, {last.tokens_per_second:.1f} tokens/s, "
                f"first after {last.seconds_to_first * 1000:.0f} ms"
            )

    def _clear(self, text: str) -> None:
        self._session.clear()
        self._say("the conversation is forgotten")

    def _help(self, text: str) -> None:
        self._say(COMMANDS_HELP.rstrip())

    def _length(self) -> str:
        return f"{self._session.num_tokens()} of {self._session.engine.max_model_len} tokens in use"

    def _say(self, text: str) -> None:
        self._console.out(text, style="dim", highlight=False)


def _read(name: str) -> str:
    path = Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"/main < {name}: cannot be read: {error}; give a UTF-8 text file.") from error
