"""What the command line shows besides the text: errors, how an answer was steered, tables."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from ladle.clients.family_responses import Family
from ladle.clients.responses import CoefficientsReport, SteeringReport, Token

# No markup: what is shown comes from servers and files, where [[models]] and [/x] mean themselves.
output = Console(highlight=False, soft_wrap=True, markup=False)
messages = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def complain(message: str) -> None:
    """An error, on stderr."""
    messages.print(f"error: {message}", style="red", markup=False)


def describe_steering(steering: SteeringReport | None, tokens: list[Token] | None) -> str:
    """How an answer was steered, in one line; "" if the server did not say."""
    if steering is None:
        return ""
    parts = [steering.method]
    if steering.preference:
        parts.append("preference " + pairs(steering.preference))
    if steering.target:
        parts.append(
            "expected quantiles " + pairs({name: outcome.quantile for name, outcome in steering.target.items()})
        )
    if steering.coefficients:
        parts.append("coefficients " + pairs(steering.coefficients))
    if steering.routing:
        parts.append(pairs({name: value for name, value in steering.routing.items() if value is not None}))
    if steering.search:
        drawn = [[choice[name] for choice in steering.search["choices"]] for name in ("blocks", "draws", "tokens")]
        blocks, draws, written = map(sum, drawn)
        parts.append(f"{blocks} blocks of {draws} draws with {written} tokens")
    shifts = [token.shift for token in tokens or [] if token.shift is not None]
    if shifts:
        parts.append(f"mean shift {sum(shifts) / len(shifts):.3f} nats")
    return ", ".join(parts)


def pairs(values: Mapping[str, float]) -> str:
    """``name=0.7 other=0.3``."""
    return " ".join(f"{name}={value:.4g}" for name, value in values.items())


def coefficients_table(report: CoefficientsReport) -> Table:
    """The members and their weights, the base last."""
    table = Table(title=f"{report.method}: {pairs(report.preference or {})}", title_justify="left")
    table.add_column("member")
    table.add_column("coefficient", justify="right")
    for member, value in (report.coefficients or {}).items():
        table.add_row(member, f"{value:+.6f}")
    if report.base_share is not None:
        table.add_row("(base)", f"{report.base_share:+.6f}", style="dim")
    return table


def family_tables(family: Family) -> list[Table]:
    """Members, methods and default sampling of a family."""
    members = Table(title=f"{family.name}: {', '.join(family.objectives)}", title_justify="left")
    for column in ("member", "kind", "rank", "parameters"):
        members.add_column(column, justify="right" if column in ("rank", "parameters") else "left")
    for member in family.members:
        rank = "full" if member.rank is None else str(member.rank)
        members.add_row(member.name, member.kind, rank, "" if member.parameters is None else f"{member.parameters:,}")
    methods = Table()
    for column in ("method", "available", "why not"):
        methods.add_column(column)
    for name, status in family.methods.items():
        methods.add_row(name, "yes" if status.available else "no", "" if status.available else status.reason or "")
    if not family.sampling:
        return [members, methods]
    drawn = Table(title="how answers are drawn where a request does not say", title_justify="left")
    drawn.add_column("method")
    drawn.add_column("fields")
    own = {name: value for name, value in family.sampling.items() if name != "methods"}
    for name, fields in {"all": own, **family.sampling.get("methods", {})}.items():
        drawn.add_row(name, pairs(fields))
    return [members, methods, drawn]
