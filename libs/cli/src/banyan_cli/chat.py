"""`banyan chat`: one question, or a conversation, streamed from the gateway."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console

from banyan_cli.client import Answer, HttpClient, Message
from banyan_cli.errors import CommandError


@dataclass(frozen=True, slots=True)
class ChatOptions:
    max_tokens: int = 256
    temperature: float = 0.0


def ask(
    client: HttpClient, model: str, messages: list[Message], options: ChatOptions, console: Console
) -> Answer:
    """Stream one answer to the console; raises CommandError when there is none."""
    body = {
        "model": model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
    }
    for piece in client.chat(body, messages):
        if isinstance(piece, Answer):
            console.print()
            return piece
        console.print(piece, end="", markup=False, highlight=False)
    raise CommandError("The gateway sent no answer.", 1)


def chat(client: HttpClient, message: str | None, options: ChatOptions, console: Console) -> None:
    """One message, or without one a conversation until an empty line."""
    model = client.model()
    if message is not None:
        answer = ask(client, model, [{"role": "user", "content": message}], options, console)
        _print_facts(answer, console)
        return
    messages: list[Message] = []
    console.print(f"Talking to {model}; an empty line ends it.", style="dim")
    while (line := _read_line(console)) != "":
        messages.append({"role": "user", "content": line})
        answer = ask(client, model, messages, options, console)
        messages.append({"role": "assistant", "content": answer.text})
        _print_facts(answer, console)


def _read_line(console: Console) -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


def _print_facts(answer: Answer, console: Console) -> None:
    console.print(
        f"{answer.num_prompt_tokens} prompt tokens, {answer.num_cached_tokens} of them cached; "
        f"{answer.num_output_tokens} output tokens; banyan explain {answer.request_id}",
        style="dim",
        highlight=False,
    )
