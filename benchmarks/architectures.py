"""Every architecture of transformers' causal language models: served as transformers and PEFT compute it, or refused by
check with the reason. One tiny random model each; what check lets through and the engine does not serve is an error."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ladle.benchmarks.random_family import write_tokenizer
from ladle.benchmarks.tiny_config import VOCABULARY, tiny_config
from ladle.guidance.plan import Plan, Source
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import Family, load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward.servable import require_servable
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams

MOST_PARAMETERS = 8_000_000
TOLERANCE = 1e-4
"""Nats, of any token's log-probability in float32."""
_PROMPT, _ANSWER = 30, 5


@dataclass(frozen=True)
class Verdict:
    """What became of one architecture.

    Attributes:
        kind: its model_type.
        outcome: ``served``, ``refused`` (by check), ``not built`` (no tiny model, so nothing was asked) or ``wrong``.
        base, member: largest difference to transformers, and with a LoRA at weight 1 to PEFT, in nats; None where that
            was not compared.
        reason: why not.
    """

    kind: str
    outcome: str
    base: float | None = None
    member: float | None = None
    reason: str = ""


def survey(folder: Path, seed: int, kinds: frozenset[str] = frozenset()) -> Iterator[Verdict]:
    """One outcome after the other, by name. ``kinds``: only these; ``folder`` gets the models."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    classes = {config.model_type: (config, model) for config, model in MODEL_FOR_CAUSAL_LM_MAPPING.items()}
    for kind in sorted(kinds & classes.keys() if kinds else classes):
        yield _one(folder / kind, kind, *classes[kind], seed)


def table(outcomes: list[Verdict], versions: Mapping[str, str]) -> str:
    """The outcomes as a page of Markdown."""
    counts = {what: sum(outcome.outcome == what for outcome in outcomes) for what in ("served", "refused", "not built")}
    lines = [
        "# Architectures",
        "",
        "Written by `ladle bench architectures --out docs/architectures.md`, with "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Every architecture of transformers' mapping of causal language models was built as a random model of two",
        "layers. Its log-probabilities of 34 tokens were compared with transformers', and with a LoRA on its linear",
        f"layers at weight 1 with PEFT's; they may differ by {TOLERANCE:g} nats.",
        "",
        f"{counts['served']} are served, {counts['refused']} are refused by `ladle check` and `ladle serve` with the "
        f"reason that is given, and of {counts['not built']} no model could be built, so that nothing is known.",
        "",
        "| architecture | outcome | base | with a LoRA | reason |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        figures = [f"{value:.0e}" if value is not None else "" for value in (outcome.base, outcome.member)]
        reason = outcome.reason.replace("|", "\\|")
        lines.append(f"| {outcome.kind} | {outcome.outcome} | {figures[0]} | {figures[1]} | {reason} |")
    return "\n".join([*lines, ""])


def _one(root: Path, kind: str, config: type, model: Any, seed: int) -> Verdict:
    torch.manual_seed(seed)
    try:
        built = _write_base(root / "base", config, model)
    except Exception as error:  # whatever a class does not like about so small a config
        return Verdict(kind, "not built", reason=_one_line(error))
    if built is None:
        return Verdict(kind, "not built", reason=f"its smallest config means more than {MOST_PARAMETERS:,} parameters")
    _write_manifest(root, member=False)
    try:
        require_servable(load_family(root))
    except FamilyError as error:
        return Verdict(kind, "refused", reason=error.reason.removeprefix("this architecture cannot be served: "))
    adapted, reason = _with_member(root, built)
    try:
        family = load_family(root)
        differences = _differences(family, built, adapted)
    except Exception as error:  # the very thing that must not happen
        return Verdict(kind, "wrong", reason=_one_line(error))
    worst = max(value for value in differences if value is not None)
    return Verdict(kind, "served" if worst <= TOLERANCE else "wrong", *differences, reason=reason)


def _write_base(folder: Path, config: type, model: Any) -> Any:
    """A random model on disk and in memory, as transformers loads it; None for one that is too large.

    Checkpoints of a config with parts (text, vision) hold all of them, although the causal language model that reads
    them is the text alone.
    """
    from transformers import MODEL_FOR_MULTIMODAL_LM_MAPPING, AutoModelForCausalLM

    small = tiny_config(config)
    whole = model if model.config_class is config else MODEL_FOR_MULTIMODAL_LM_MAPPING.get(config, model)
    with torch.device("meta"):
        if sum(parameter.numel() for parameter in whole(small).parameters()) > MOST_PARAMETERS:
            return None
    built = whole(small).float().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.is_floating_point():
                one = parameter.ndim == 1
                parameter.copy_(torch.randn_like(parameter) * (0.05 if one else 0.15) + (parameter if one else 0))
    with torch.inference_mode():
        built(input_ids=torch.randint(3, VOCABULARY - 20, (1, _PROMPT)), use_cache=False)
    built.save_pretrained(folder)
    write_tokenizer(folder, VOCABULARY)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def _with_member(root: Path, built: Any) -> tuple[Any, str]:
    """PEFT's model of a random LoRA, which is the family's member from now on; or None and why there is no such.

    On every linear layer but the head; where that is refused (experts are no linear layers), on those that attend.
    """
    head = built.get_output_embeddings()
    kinds = (nn.Linear, Conv1D)
    linear = [name for name, module in built.named_modules() if type(module) in kinds and module is not head]
    adapted, reason = _adapted(root, built, linear)
    attending = [name for name in linear if "attn" in name or "attention" in name]
    if adapted is None and attending and len(attending) < len(linear):
        adapted, _ = _adapted(root, built, attending)
        reason = f"{reason.split(';')[0]}; compared with one on its attention" if adapted is not None else reason
    return adapted, reason


def _adapted(root: Path, built: Any, modules: list[str]) -> tuple[Any, str]:
    from peft import LoraConfig, get_peft_model

    shutil.rmtree(root / "m", ignore_errors=True)
    try:
        plain = type(built).from_pretrained(root / "base", dtype=torch.float32)
        options: Any = {"target_modules": sorted(modules), "task_type": "CAUSAL_LM"}
        adapted = get_peft_model(plain, LoraConfig(r=3, lora_alpha=6, **options)).eval()
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        adapted.save_pretrained(root / "m")
        _write_manifest(root, member=True)
        load_family(root)
    except Exception as error:  # PEFT and check refuse in their own ways
        _write_manifest(root, member=False)
        return None, f"LoRA: {error.reason if isinstance(error, FamilyError) else _one_line(error)}"
    return adapted, ""


def _write_manifest(root: Path, member: bool) -> None:
    lines = ['name = "x"', 'objectives = ["a"]', "[base]", 'model = "base"']
    if member:
        lines += ["[[policies]]", 'name = "m"', 'path = "m"', 'objective = "a"']
    (root / "family.toml").write_text("\n".join([*lines, ""]))


def _differences(family: Family, built: Any, adapted: Any) -> tuple[float, float | None]:
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", max_sequences=4, kv_memory=8 << 20))
    engine.start()
    try:
        prompt = torch.randint(3, VOCABULARY - 20, (_PROMPT,)).tolist()
        base = _difference(engine, prompt, (), built)
        return base, None if adapted is None else _difference(engine, prompt, (("m", 1.0),), adapted)
    finally:
        engine.shutdown()


def _difference(engine: Engine, prompt: list[int], terms: tuple[tuple[str, float], ...], reference: Any) -> float:
    """The largest difference of the log-probability of any token, of the prompt or the greedy answer."""
    plan = Plan("survey", None, None, (Source("one", "base", 1.0, terms),), "none", False, ())
    sampling = SamplingParams(max_tokens=_ANSWER, temperature=0.0, ignore_eos=True, prompt_logprobs=True)
    outputs: list[StepOutput] = []
    done = threading.Event()

    def sink(batch: list[StepOutput]) -> None:
        outputs.extend(batch)
        if batch[-1].finish_reason is not None:
            done.set()

    engine.submit(GenerationRequest("survey", tuple(prompt), plan, sampling), sink)
    if not done.wait(120) or outputs[-1].finish_reason == "error":
        raise RuntimeError(outputs[-1].error if outputs else "no answer")
    tokens = torch.tensor([prompt + [output.token for output in outputs]])
    with torch.inference_mode():
        expected = torch.log_softmax(reference(input_ids=tokens, use_cache=False).logits[0].float(), dim=-1)
    expected = expected[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    ours = [token.logprob for token in outputs[0].prompt or ()] + [output.logprob for output in outputs]
    return float((torch.tensor(ours) - expected).abs().max())


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:200] if lines else type(error).__name__
