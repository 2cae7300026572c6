"""How a question and its context are put to a model.

An HTTP server gets messages. The engine gets main and branch: main is the instructions and the context, so that rows
with the same context share it; the branch is the question. Contexts are untrusted: braces, Jinja syntax and special
tokens in them are plain text.

    prompts = Prompts(PromptTemplate(args.prompt_template))
    prompt = prompts.prompt(row)                   # for an AnswerBackend

    encoder = PromptEncoder(tokenizer)
    main_ids, branch_ids = encoder.split(prompts.split(row, encoder.slots))    # for the engine
"""

from __future__ import annotations

from collections.abc import Mapping

from parallelmind.answering.backends.base import Message, Prompt
from parallelmind.answering.context_rows import ContextRow
from parallelmind.answering.openai_body import CHAT, chat_messages, completion_prompt
from parallelmind.answering.prompt_template import PromptTemplate
from parallelmind.prompts.pieces import Piece, SplitPrompt, join, strip
from parallelmind.prompts.slots import Slots, Turn

_PARAGRAPH = Piece("\n\n", is_data=False)
_LINE_END = Piece("\n", is_data=False)


class Prompts:
    """Makes the prompts of rows, by their `retrieval_method`.

    Args:
        template: the built-in one if None.
        system_role: whether messages have a system turn; if not, the instructions begin the user's turn (some servers
            refuse a system turn for some models).
    """

    def __init__(self, template: PromptTemplate | None = None, *, system_role: bool = True) -> None:
        self._template = template or PromptTemplate()
        self._system_role = system_role

    def prompt(self, row: ContextRow) -> Prompt:
        """For a server, or a backend of the user's own."""
        if row.body is not None:
            return Prompt(
                query=row.query,
                context=row.context,
                retrieval_method=row.retrieval_method,
                body=row.body,
                endpoint=row.endpoint,
            )
        system, context, question, _ = self._fill(row)
        user = join(strip([*context, _PARAGRAPH, *question]))
        messages: tuple[Message, ...] = ({"role": "user", "content": user},)
        if self._system_role and system:
            messages = ({"role": "system", "content": join(system)}, *messages)
        elif system:
            messages = ({"role": "user", "content": f"{join(system)}\n\n{user}"},)
        return Prompt(query=row.query, context=row.context, retrieval_method=row.retrieval_method, messages=messages)

    def split(self, row: ContextRow, slots: Slots) -> SplitPrompt:
        """For the engine.

        Raises:
            DataError: an imported request has messages that are not texts.
            RequestError: the chat template refuses the turns.
        """
        if row.body is not None:
            return _split_request(row.body, row.endpoint, slots)
        system, context, question, answer = self._fill(row)
        head = (*context, _PARAGRAPH) if context else ()
        if slots.template.is_own:
            turns = [Turn("system", system)] if system else []
            return slots.split([*turns, Turn("user", head)], question)
        main = (*system, _PARAGRAPH, *head) if system else head
        branch = (*question, _LINE_END, *answer) if answer else question
        return SplitPrompt(main, branch, "text")

    def _fill(self, row: ContextRow) -> tuple[tuple[Piece, ...], ...]:
        """System, context, question and answer."""
        section = self._template.section(row.retrieval_method)
        values = {
            "query": row.query,
            "context": row.context,
            "target_api": row.target_api,
            "dependencies": ", ".join(f"{name} {version}".strip() for name, version in row.dependencies.items()),
            "retrieval_method": row.retrieval_method,
            "id": str(row.id),
        }
        parts = (section.system, section.context, section.question, section.answer)
        return tuple(strip(part.fill(values)) for part in parts)


def _split_request(body: Mapping[str, object], endpoint: str, slots: Slots) -> SplitPrompt:
    """An imported OpenAI request: the last message is the branch, what goes before it is main."""
    if endpoint != CHAT:
        # Whoever writes a raw prompt writes its special tokens too.
        return SplitPrompt((), (Piece(completion_prompt(body), is_data=False),), "text")
    *before, last = (
        Turn(message["role"], (Piece(message["content"], is_data=True),)) for message in chat_messages(body)
    )
    return slots.split([*before, Turn("user", ())], last.pieces)
