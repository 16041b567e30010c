"""What holding answers to a form costs: a decode step with a grammar against one without, interleaved; and what the
grammar takes by itself, compiled anew."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

from ladle.benchmarks.engine_side import EngineSide
from ladle.benchmarks.paired import over_plain
from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.server.engine.grammars.grammar import GrammarCompiler, GrammarSpec

BURST = 12
PLAIN = Steering(method="base")
# Long enough that no burst comes to its end; strings, numbers and a choice.
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["a", "b", "c"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
SCHEMA = {"type": "array", "items": PERSON, "minItems": 1000}
TEXT = json.dumps([{"name": "Ada Lovelace of London", "age": 36, "kind": "b"}] * 4)[:-1]


def run(family: Family, dtype: str, batches: Sequence[int], rounds: int) -> Iterator[dict[str, object]]:
    """A row a batch size, all of whose sequences have the grammar or none has: milliseconds per step, and the ratio,
    paired by round. ``compile_ms``: a schema that was never seen. ``mask_us``: the tokens that may come next and
    the step to one of them, at each token of a text of that schema, with nothing to hide it behind: median and 99th
    percentile."""
    side = EngineSide(family, dtype)
    compiler = GrammarCompiler(side.engine.tokenizer, side.engine.eos)
    compiled, masks = _alone(side, compiler, rounds)
    grammar = compiler.compile(GrammarSpec.json_schema(SCHEMA))
    for batch in batches:
        sides: dict[str, Callable[[], Iterator[float]]] = {
            "plain": lambda batch=batch: side.burst(batch, BURST, lambda row: PLAIN),  # type: ignore[misc]
            "form": lambda batch=batch: side.burst(batch, BURST, lambda row: PLAIN, grammar),  # type: ignore[misc]
        }
        yield {
            "batch": batch,
            "dtype": dtype,
            **over_plain(sides, rounds),
            "compile_ms": round(1e3 * compiled, 2),
            "mask_us": round(1e6 * statistics.median(masks), 1),
            "mask_us_99": round(1e6 * sorted(masks)[int(0.99 * len(masks))], 1),
        }


def _alone(side: EngineSide, compiler: GrammarCompiler, rounds: int) -> tuple[float, list[float]]:
    """Median seconds to compile, and seconds to each mask."""
    compiler.compile(GrammarSpec.json_schema({}))  # reads the vocabulary
    tokens = side.engine.tokenizer.encode(TEXT, add_special_tokens=False)
    compiled, masks = [], []
    for turn in range(rounds):
        start = time.perf_counter()
        grammar = compiler.compile(GrammarSpec.json_schema({**SCHEMA, "title": f"the {turn}th"}))
        compiled.append(time.perf_counter() - start)
        pool, position = grammar.pool, grammar.start()
        for token in tokens:
            start = time.perf_counter()
            pool.masks([position])
            pool.mask(position)
            pool.advance([(position, token)])
            masks.append(time.perf_counter() - start)
            assert position.error is None, "the text is of the schema"
        pool.finish(position)
    return statistics.median(compiled), masks
