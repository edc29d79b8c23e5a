"""The `banyan` command: a mesh on this machine, and questions to a running one.

What a command needs is imported when it runs: gRPC alone takes longer than most answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from banyan_cli.client import HttpClient
from banyan_cli.errors import CommandError
from banyan_cli.options import MeshOptions, Numerics, RunnerKind
from banyan_cli.state import StateFolder
from banyan_core.model_spec import KvDtype, Quantize
from banyan_runtime.settings import SettingsError

app = typer.Typer(
    help="A mesh on this machine, and questions to a running one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
StateDir = Annotated[Path, typer.Option(help="Folder with the mesh's state and logs.")]
Url = Annotated[str | None, typer.Option(help="The gateway; else that of the state folder.")]
DEFAULT_STATE_DIR = Path(".banyan")


def console() -> Console:
    return Console(soft_wrap=True)


def default_policies() -> Path:
    """BANYAN_POLICIES, or the file that stands in the repository."""
    named = os.environ.get("BANYAN_POLICIES")
    return Path(named) if named else Path(__file__).parents[4] / "infra" / "policies.toml"


def default_topics() -> Path | None:
    """The file that stands in the repository, if we run from there."""
    file = Path(__file__).parents[4] / "infra" / "topics.yaml"
    return file if file.is_file() else None


def demo_model() -> Path:
    from banyan_engine.demo import model_folder  # the only thing that is needed of the engine

    return model_folder()


@app.command()
def up(
    prefill: Annotated[int, typer.Option(help="Prefill workers.")] = 1,
    decode: Annotated[int, typer.Option(help="Decode workers.")] = 1,
    routers: Annotated[int, typer.Option(help="Routers.")] = 1,
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder; else the demo.")] = None,
    runner: Annotated[RunnerKind, typer.Option(help="What computes.")] = RunnerKind.TORCH,
    numerics: Annotated[Numerics, typer.Option(help="How it computes.")] = Numerics.FAST,
    quantize: Annotated[Quantize | None, typer.Option(help="Pack weights.")] = None,
    kv_dtype: Annotated[KvDtype | None, typer.Option(help="Type of K and V.")] = None,
    adapters: Annotated[Path | None, typer.Option(help="Folder of LoRA adapters.")] = None,
    port: Annotated[int, typer.Option(help="The gateway's port; 0 is any free one.")] = 8000,
    policies: Annotated[Path | None, typer.Option(help="The policy file.")] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    autoscale: Annotated[bool, typer.Option(help="Let the autoscaler start and drain.")] = False,
    bus: Annotated[str | None, typer.Option(help="kafka://HOST:PORT; else own Valkey.")] = None,
    detach: Annotated[bool, typer.Option(help="Return when the mesh is up.")] = False,
) -> None:
    """Start all seven services and an embedded Valkey; restart what crashes; stop by Ctrl-C."""
    from banyan_cli import up as up_command

    options = MeshOptions(
        model=demo_model() if model is None and runner is RunnerKind.TORCH else model,
        policies=policies or default_policies(),
        state_dir=state_dir,
        num_prefill=prefill,
        num_decode=decode,
        num_routers=routers,
        runner=runner,
        numerics=numerics,
        quantize=quantize,
        kv_dtype=kv_dtype,
        adapters=adapters,
        port=port,
        autoscale=autoscale,
        bus=bus,
        topics=default_topics(),
    )
    if detach:
        arguments = [word for word in sys.argv[1:] if word != "--detach"]
        _exit(up_command.up_detached(options, arguments, console()))
    _exit(up_command.up(options, console()))


@app.command()
def down(state_dir: StateDir = DEFAULT_STATE_DIR) -> None:
    """Drain and stop the mesh that `up` started."""
    from banyan_cli import up as up_command

    _exit(up_command.down(StateFolder(state_dir), console()))


@app.command()
def status(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Who runs and who answers; the workers as a router sees them."""
    from banyan_cli.status import status as show

    _exit(show(StateFolder(state_dir), console(), as_json=json))


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="Without one, a conversation.")] = None,
    state_dir: StateDir = DEFAULT_STATE_DIR,
    url: Url = None,
    max_tokens: Annotated[int, typer.Option(help="At most so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
) -> None:
    """Ask the model, streamed from the gateway."""
    from banyan_cli.chat import ChatOptions
    from banyan_cli.chat import chat as talk

    with HttpClient(url or StateFolder(state_dir).running().gateway_url) as client:
        talk(client, message, ChatOptions(max_tokens, temperature), console())


@app.command()
def generate(
    input: Annotated[Path, typer.Option(help="JSON lines: OpenAI batch, or bodies alone.")],
    output: Annotated[Path, typer.Option(help="Answers; a run goes on where one stopped.")],
    model: Annotated[Path | None, typer.Option(help="Hugging Face folder; else the demo.")] = None,
    numerics: Annotated[Numerics, typer.Option(help="How it computes.")] = Numerics.FAST,
) -> None:
    """Answer a file of prompts in this process, without a mesh."""
    from banyan_cli.generate import generate as answer_all

    to_stderr = Console(stderr=True, soft_wrap=True)
    _exit(answer_all(input, output, model or demo_model(), numerics.value, to_stderr))


@app.command()
def top(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    window: Annotated[int, typer.Option(help="Seconds that the figures cover.")] = 300,
    once: Annotated[bool, typer.Option(help="Show one picture and end.")] = False,
) -> None:
    """The mesh's figures, live; Ctrl-C ends it."""
    from banyan_cli.top import top as show

    with HttpClient(StateFolder(state_dir).running().metrics_url) as client:
        show(client, window, console(), once=once)


@app.command()
def explain(
    request: Annotated[str, typer.Argument(help="The id of an answer, chatcmpl-...")],
    state_dir: StateDir = DEFAULT_STATE_DIR,
    url: Url = None,
) -> None:
    """Why a request went where it went, and where its time was spent."""
    from banyan_cli.explain import explain as show

    with HttpClient(url or StateFolder(state_dir).running().gateway_url) as client:
        show(client, request, console())


@app.command()
def demo() -> None:
    """Bring up a mesh with the demo model, ask it twice, take it down."""
    from banyan_cli.demo import demo as show

    show(console())


def _exit(code: int) -> NoReturn:
    raise typer.Exit(code)


def main() -> None:
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # its news of peers that leave are not ours
    try:
        app()
    except (CommandError, SettingsError) as error:
        print(f"banyan: {error}", file=sys.stderr)
        sys.exit(error.exit_code if isinstance(error, CommandError) else 2)


if __name__ == "__main__":
    main()
