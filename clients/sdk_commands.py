"""The commands of the SDK: ``generate``, ``chat``, ``coefficients``, ``families``."""

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from ladle.clients import completion
from ladle.clients.arguments import (
    given,
    parse_monitor,
    parse_preference,
    parse_rank,
    parse_schema,
    parse_search,
    parse_steering,
    parse_thinking,
)
from ladle.clients.chat_session import ChatSession
from ladle.clients.client import Client
from ladle.clients.display import coefficients_table, describe_steering, family_tables, messages, output
from ladle.clients.lazy_commands import CommandGroup
from ladle.clients.painter import Painter
from ladle.clients.responses import Generation, Response
from ladle.clients.stream import Stream
from ladle.steering_options import OPTIONS

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)

Url = Annotated[
    str | None, typer.Option(envvar="LADLE_URL", help="URL of the server.", show_default="http://localhost:8000")
]
Key = Annotated[
    str | None, typer.Option("--api-key", envvar="LADLE_API_KEY", help="The key, where the server asks for one.")
]
Model = Annotated[
    str | None,
    typer.Option(
        help="The model that answers: a family, a preset or FAMILY/METHOD@objective=weight.",
        autocompletion=completion.models,
    ),
]
Preference = Annotated[
    str | None,
    typer.Option(
        "--preference",
        "-p",
        help=f"{OPTIONS['preference'].text} Such as positive=0.8,concise=0.2.",
        autocompletion=completion.objectives,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help=f"{OPTIONS['target'].text} Such as positive=0.6.",
        autocompletion=completion.objectives,
    ),
]
Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help=f"{OPTIONS['method'].text} base, bone_soup, mage, ...; `ladle families` lists them.",
        autocompletion=completion.methods,
    ),
]
Strength = Annotated[float | None, typer.Option(help=OPTIONS["strength"].text)]
Steering = Annotated[
    list[str] | None,
    typer.Option(
        "--steering",
        "-s",
        metavar="KEY=VALUE",
        help=f"Another steering option, such as candidates=10; may be repeated. Options: {', '.join(OPTIONS)}.",
        autocompletion=completion.steering,
    ),
]
System = Annotated[str | None, typer.Option(help="What the model is told before the conversation.")]
MaxTokens = Annotated[int | None, typer.Option(help="How many tokens to generate at most.")]
Temperature = Annotated[
    float | None, typer.Option("--temperature", "-t", help="Temperature to draw with; 0 takes the best token.")
]
TopP = Annotated[float | None, typer.Option(help="Draw from the best tokens that hold this share of the probability.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the draws; the same seed gives the same tokens.")]
Thinking = Annotated[
    int | None,
    typer.Option(min=0, help="The most tokens that the thought in front of the answer may have; it is shown dim."),
]
CheckThought = Annotated[
    int | None,
    typer.Option(min=1, metavar="EVERY", help="Ask after so many tokens whether the thought holds the answer."),
]
Trace = Annotated[bool, typer.Option("--trace", help="Colour the tokens by expert, or by how far control moved them.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer as JSON on stdout.")]


def _version(wanted: bool) -> None:
    if wanted:
        output.print(f"ladle {version('ladle')}")
        raise typer.Exit


@app.callback()
def ladle(
    show: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Language models with control at inference time: preference weights in, merged and guided decoding out.

    Example: ladle serve demo, and then: ladle chat -p positive=0.8,concise=0.2
    """


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; read from stdin if left out.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Answer the prompt instead of continuing it.")] = False,
    preference: Preference = None,
    target: Target = None,
    method: Method = None,
    strength: Strength = None,
    steering: Steering = None,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    thinking: Thinking = None,
    check_thought: CheckThought = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many answers to make.")] = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="BY",
            help="Print only the best of --n answers, by likelihood, implicit or explicit values, the router, "
            "ask=QUESTION or vote=PATTERN.",
        ),
    ] = None,
    keep: Annotated[int | None, typer.Option(help="How many of the best to print, with --rank.")] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="BY[,KEY=VALUE,...]",
            help="Draw several continuations of every sentence and keep the best, by likelihood, implicit or explicit "
            "values; such as explicit,until=16,draws=4,beam=2.",
        ),
    ] = None,
    monitor: Annotated[
        str | None, typer.Option(metavar="VALUE=BOUND", help="End the answer where an explicit value is above a bound.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the text; may be repeated.")] = None,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="A JSON schema that the answer fulfils.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="A pattern that the whole answer matches.")] = None,
    trace: Trace = False,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Continue a text, or answer it with --chat.

    Example: ladle generate "Tell me about rain." --chat -p positive=0.8,concise=0.2 --n 8 --rank explicit
    """
    text = sys.stdin.read() if prompt is None else prompt
    options = given(
        n=n,
        rank=parse_rank(rank, keep),
        search=parse_search(search),
        monitor=parse_monitor(monitor),
        preference=parse_preference(preference),
        target=parse_preference(target, "target"),
        method=method,
        strength=strength,
        steering=parse_steering(steering),
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        thinking=parse_thinking(thinking, check_thought),
        stop=stop or None,
        json_schema=parse_schema(json_schema),
        regex=regex,
        trace=trace or None,
    )
    with Client(url, api_key=api_key) as client:
        call: Any = client.chat if chat else client.generate
        if as_json:
            print_json(call(text, **options))
        elif rank is not None or (n or 1) > 1:
            show_all(call(text, **options), trace)
        else:
            show(call(text, stream=True, **options), trace)


def show(stream: Stream, trace: bool) -> None:
    """Print an answer as it comes; after a traced one, what its colours mean and how it was steered."""
    painter = Painter()
    with stream:
        for token in stream:
            output.print(painter.paint(token.token), end="")
        output.print()
        answer = stream.result()
    conclude(answer, painter, trace)


def show_all(answer: Generation, trace: bool) -> None:
    """Print finished answers, an empty line between them; what they are worth goes where notes go."""
    painter = Painter()
    for index, choice in enumerate(answer.choices):
        if index:
            output.print()
        if choice.score is not None:
            messages.print(f"score {choice.score:.4g}", style="dim", markup=False)
        if choice.reasoning_content and not trace:
            output.print(choice.reasoning_content, style="dim", markup=False, highlight=False)
        if trace and choice.tokens is not None:
            for token in choice.tokens:
                output.print(painter.paint(token), end="")
            output.print()
        else:
            output.print(choice.text, markup=False, highlight=False)
    conclude(answer, painter, trace)


def conclude(answer: Generation, painter: Painter, trace: bool) -> None:
    """What is to be said of an answer once it is printed."""
    if trace:
        messages.print(painter.legend())
        messages.print(describe_steering(answer.steering, answer.tokens), style="dim", markup=False)
    for warning in answer.steering.warnings if answer.steering else []:
        messages.print(f"note: {warning}", style="yellow", markup=False)


@app.command()
def chat(
    preference: Preference = None,
    method: Method = None,
    strength: Strength = None,
    steering: Steering = None,
    model: Model = None,
    system: System = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    thinking: Thinking = None,
    check_thought: CheckThought = None,
    trace: Trace = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Talk to a server, changing preferences on the way; /help inside tells how.

    Example: ladle chat -p positive=0.8,concise=0.2 --trace
    """
    options = given(
        preference=parse_preference(preference),
        method=method,
        strength=strength,
        steering=parse_steering(steering),
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        thinking=parse_thinking(thinking, check_thought),
        trace=trace or None,
    )
    with Client(url, api_key=api_key) as client:
        ChatSession(client, options).run()


@app.command()
def coefficients(
    preference: Annotated[str, typer.Argument(help="Weights by objective, such as positive=0.8,concise=0.2.")],
    method: Method = None,
    steering: Steering = None,
    model: Model = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Show what a preference becomes: the weight of every member.

    Example: ladle coefficients positive=0.8,concise=0.2 --method bone_soup
    """
    with Client(url, api_key=api_key) as client:
        report = client.coefficients(
            parse_preference(preference), method=method, model=model, steering=parse_steering(steering)
        )
    if as_json:
        print_json(report)
        return
    output.print(coefficients_table(report))
    if report.l1 is not None:
        condition = "" if report.condition is None else f", condition of the matrix {report.condition:.4g}"
        output.print(f"sum of absolute coefficients {report.l1:.4g}{condition}")
    for warning in report.warnings:
        messages.print(f"note: {warning}", style="yellow", markup=False)


@app.command()
def families(
    name: Annotated[str | None, typer.Argument(help="Show only this family.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    api_key: Key = None,
) -> None:
    """Show what a server serves: objectives, members, methods.

    Example: ladle families demo --json
    """
    with Client(url, api_key=api_key) as client:
        shown = client.families() if name is None else [client.family(name)]
    if as_json:
        print_json(shown if name is None else shown[0])
        return
    for family in shown:
        for table in family_tables(family):
            output.print(table)


def print_json(answer: Response | Sequence[Response]) -> None:
    """An answer as the server gave it, indented."""
    plain = _plain(answer) if isinstance(answer, Response) else [_plain(entry) for entry in answer]
    typer.echo(json.dumps(plain, ensure_ascii=False, indent=2))


def _plain(answer: Response) -> dict[str, Any]:
    return answer.model_dump(exclude_unset=True)
