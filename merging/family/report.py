"""What ``ladle check`` says about a family: as data, as JSON, as plain text."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ladle.merging.family.family import Family, MemberInfo
from ladle.merging.family.report_lines import (
    ModelInfo,
    RouterInfo,
    ValueInfo,
    model_info,
    model_type,
    router_info,
    value_info,
)
from ladle.merging.preferences.coefficients import Coefficients, check_matrix


@dataclass(frozen=True)
class Corner:
    """A method's coefficients where the preference is all on one objective (or ``uniform``)."""

    method: str
    preference: str
    coefficients: Coefficients


@dataclass(frozen=True)
class Report:
    """Everything about a family that loaded.

    Attributes:
        name, root: of the family, and its folder.
        objectives: in the manifest's order.
        base: model, folder, revision, architecture, dtypes, quantization, parameters, bytes, number of linear modules
            and of weights of experts, tied weights.
        models: those beside the base.
        values: in manifest order.
        router: with its experts; None without.
        matrix: B by rows, in the order of ``backbones``; None without one.
        condition: of B.
        extrapolation: by objective, how far beyond B its mixes may go.
        bank_bytes: what all low-rank members take as float32.
        merge_bytes: what one materialised merge takes, in the base's dtype.
        methods: (available, why not) by method.
        default_method, presets: of requests that name none, and those that they may name.
        warnings: sentences about what loaded all the same.
        chat: whose chat template is used, and the names of tokens that end an answer besides the base's own.
        corners: coefficients of every available merging method at the corners and in the middle.
    """

    name: str
    root: str
    base: dict[str, Any]
    objectives: tuple[str, ...]
    backbones: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    models: tuple[ModelInfo, ...]
    values: tuple[ValueInfo, ...]
    router: RouterInfo | None
    matrix: tuple[tuple[float, ...], ...] | None
    condition: float | None
    extrapolation: dict[str, float]
    bank_bytes: int
    merge_bytes: int
    default_method: str
    methods: dict[str, tuple[bool, str]]
    corners: tuple[Corner, ...]
    presets: tuple[str, ...]
    warnings: tuple[str, ...]
    chat: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
        document = asdict(self)
        document["methods"] = {
            name: {"available": ready, "reason": reason or None} for name, (ready, reason) in self.methods.items()
        }
        document["corners"] = [
            {
                "method": corner.method,
                "preference": corner.preference,
                "coefficients": corner.coefficients.as_dict(),
                "base_share": corner.coefficients.base_share,
                "l1": corner.coefficients.l1,
                "warnings": list(corner.coefficients.warnings),
            }
            for corner in self.corners
        ]
        return document

    def tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        """(title, header, rows) of every table, for whatever draws them."""
        size = f"{', '.join(self.base['dtypes'])}, {_size(self.base['bytes'])}"
        experts = f", {held} weights of experts" if (held := self.base["expert_weights"]) else ""
        if self.base["quantization"] is not None:
            size += f", made of {self.base['quantization']}"
        overview = [
            ["base", str(self.base["model"])],
            ["folder", str(self.base["folder"])],
            ["architecture", f"{self.base['architecture']}, {self.base['linear_modules']} linear modules{experts}"],
            ["parameters", f"{self.base['parameters']:,} ({size})"],
            ["revision", str(self.base["revision"])[:16]],
            ["bank of low-rank members", f"{_size(self.bank_bytes)} in float32"],
            ["one materialised merge", _size(self.merge_bytes)],
            ["default method", self.default_method],
            ["chat template", f"of {self.chat['template']}"],
        ]
        if self.chat["stop_tokens"]:
            overview.append(["answers also end at", " ".join(self.chat["stop_tokens"])])
        if self.presets:
            overview.append(["presets", ", ".join(self.presets)])
        tables = [(f"family {self.name}", ["", ""], overview)]
        rows = [
            [
                member.name,
                member.kind,
                member.storage,
                "" if member.rank is None else str(member.rank),
                f"{member.parameters:,}",
                _size(member.bytes),
                member.objective or _numbers(member.rewards or ()),
            ]
            for member in self.members
        ]
        header = ["name", "kind", "storage", "rank", "parameters", "size", "objective or rewards"]
        tables.append(("members", header, rows))
        tables += self._what_guides()
        if self.matrix is not None:
            lines = [
                [name, *(f"{value:.4g}" for value in row)]
                for name, row in zip(self.backbones, self.matrix, strict=True)
            ]
            title = f"backbone-reward matrix B (condition number {self.condition:.4g})"
            tables.append((title, ["backbone", *self.objectives], lines))
        methods = [[name, "yes" if ready else "no", reason] for name, (ready, reason) in self.methods.items()]
        tables.append(("methods", ["name", "available", "why not"], methods))
        corners = [
            [
                corner.method,
                corner.preference,
                "  ".join(f"{name}={value:+.4f}" for name, value in corner.coefficients.as_dict().items()),
                f"{corner.coefficients.base_share:+.4f}",
                f"{corner.coefficients.l1:.3f}",
            ]
            for corner in self.corners
        ]
        if corners:
            tables.append(("coefficients", ["method", "preference", "members", "base share", "l1"], corners))
        return tables

    def _what_guides(self) -> list[tuple[str, list[str], list[list[str]]]]:
        tables = []
        if self.models:
            header = [
                "name",
                "architecture",
                "parameters",
                "size",
                "vocabulary",
                "hidden",
                "members",
                "amateur",
                "drafts",
            ]
            rows = [
                [
                    model.name,
                    model.architecture,
                    f"{model.parameters:,}",
                    _size(model.bytes),
                    str(model.vocabulary),
                    str(model.hidden),
                    ", ".join(model.members),
                    "yes" if model.amateur else "",
                    "yes" if model.drafts else "",
                ]
                for model in self.models
            ]
            tables.append(("further models", *_filled(header, rows)))
        if self.values:
            header = ["name", "kind", "trained on", "details"]
            rows = [[value.name, value.kind, value.trained_on, value.details] for value in self.values]
            tables.append(("values", *_filled(header, rows)))
        if self.router is not None:
            rows = [
                [
                    expert.name,
                    f"{expert.norm:.3g}",
                    f"{expert.bias:+.3g}" if expert.bias else "",
                    expert.weights if expert.weights != expert.name else "",
                    expert.model,
                ]
                for expert in self.router.experts
            ]
            if self.router.defer is not None:
                rows.append(
                    ["(deferral)", f"{self.router.defer['norm']:.3g}", f"{self.router.defer['bias']:+.3g}", "", ""]
                )
            header = ["expert", "norm of its row", "bias", "weights of", "grown from"]
            grown = f", grown from {self.router.model}" if self.router.model else ""
            tables.append((f"router {self.router.name}{grown}", *_filled(header, rows)))
        return tables

    def text(self) -> str:
        """All tables and warnings as plain text."""
        parts = [_table(title, header, rows) for title, header, rows in self.tables()]
        parts += [f"warning: {warning}" for warning in self.warnings]
        return "\n\n".join(parts) + "\n"


def build_report(
    family: Family,
    default_method: str,
    methods: Mapping[str, tuple[bool, str]],
    corners: Sequence[Corner],
) -> Report:
    """The report of a loaded family; what methods say comes from the caller, for methods live above this package."""
    condition = None
    quantization = family.architecture.blueprint.quantization
    warnings: list[str] = list(family.warnings)
    if family.matrix is not None:
        _, condition, own = check_matrix(family.matrix)
        warnings += own
    for corner in corners:
        for warning in corner.coefficients.warnings:
            if warning not in warnings:  # those about the matrix are the same at every corner
                warnings.append(f"{corner.method} at {corner.preference}: {warning}")
    base = family.base
    return Report(
        name=family.name,
        root=str(family.root),
        base={
            "model": family.manifest.base.model,
            "folder": str(family.base_path),
            "revision": family.base_revision,
            "architecture": model_type(family.models[""]),
            "dtypes": sorted({str(base.dtype(name)).removeprefix("torch.") for name in base.names}),
            "quantization": None if quantization is None else quantization.name,
            "parameters": base.numel(),
            "bytes": base.nbytes(),
            "linear_modules": len(family.architecture.linear),
            "expert_weights": len(family.architecture.experts.weights),
            "tied": dict(family.architecture.tied),
        },
        objectives=family.objectives,
        backbones=family.backbones,
        members=tuple(family.members()),
        models=tuple(model_info(family, model) for name, model in family.models.items() if name),
        values=tuple(value_info(family, value) for value in family.values),
        router=router_info(family),
        matrix=tuple(map(tuple, family.matrix.tolist())) if family.matrix is not None else None,
        condition=condition,
        extrapolation=family.extrapolation,
        bank_bytes=4 * sum(member.numel() for model in family.models.values() for member in model.low_rank.values()),
        merge_bytes=base.nbytes(),
        default_method=default_method,
        methods=dict(methods),
        corners=tuple(corners),
        presets=tuple(family.manifest.presets),
        warnings=tuple(warnings),
        chat={"template": family.conversation.origin, "stop_tokens": list(family.conversation.ends)},
    )


def _table(title: str, header: list[str], rows: list[list[str]]) -> str:
    lines = [header, *rows] if any(header) else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    drawn = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([title, "-" * len(title), *drawn])


def _filled(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The columns that say something: a terminal has little room, and most families use few of them."""
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    return [header[column] for column in kept], [[row[column] for column in kept] for row in rows]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
