"""Answers that are searched: against a search in float64 that sees the whole text anew for every token, under several
methods, and what ends, is refused or left behind."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guided_requests import World
from reference_text import Text, View, view_of, with_reference, without_preference
from seeds import fresh_seed
from tiny_engine import Collector, assert_idle, build, drain, serve

from ladle.kernels.reference.operations import gumbel
from ladle.server.engine.requests.request import StepOutput
from ladle.server.engine.scores.slot_tables import draw_keys
from ladle.server.engine.stats.idle_check import IdleCheck

PREFERENCE = {"positive": 0.7, "simple": 0.3}
MARKS = {"sentence": ".!?\n", "punctuation": ".!?\n,:;)]}"}
METHODS: list[dict[str, Any]] = [
    {"method": "base"},
    {"method": "bone_soup"},
    {"method": "mage", "value": "implicit", "strength": 0.5},
    {"method": "vas", "strength": 1.5, "candidates": 7},
    {"method": "mod", "divergence": "forward_kl"},
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("searched"), random.Random(fresh_seed()), "llama", pblora=False)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(fresh_seed())


@dataclass
class Reference:
    """The search as docs/search.md has it, on one prompt."""

    world: World
    steering: Mapping[str, Any]
    search: Mapping[str, Any]
    prompts: Mapping[View, Sequence[int]]
    seed: int
    total: int
    pieces: Sequence[str]
    bias: Mapping[int, float]

    def __post_init__(self) -> None:
        self.rows: dict[tuple[int, ...], torch.Tensor] = {}
        draws, until = self.search["draws"], self.search["until"]
        self.most = draws if isinstance(draws, int) else draws["most"]
        self.entropy = None if isinstance(draws, int) else draws["entropy"]
        self.length = until if isinstance(until, int) else 64
        self.marks = "" if isinstance(until, int) else MARKS[until]
        every = self.most * self.search["beam"]
        words = draw_keys(np.full(every, self.seed, dtype=np.uint64), np.arange(every)).view(np.uint64)[:, 0].tolist()
        self.seeds = [self.seed, *words[1:]]
        self.blocks: dict[tuple[int, ...], tuple[list[int], list[float]]] = {}
        """By text, where its blocks begin and the mean logprobs of those that something else was drawn beside."""

    def logprobs(self, tokens: tuple[int, ...]) -> torch.Tensor:
        if tokens not in self.rows:
            row = self.world.reference.scores(self.steering, self.prompts, tokens, len(tokens))[0]
            self.rows[tokens] = torch.log_softmax(row, -1)
        return self.rows[tokens]

    def draw(self, tokens: tuple[int, ...], seed: int) -> int:
        row = self.logprobs(tokens).clone()
        for token, more in self.bias.items():
            row[token] += more
        words = draw_keys(np.array([seed], dtype=np.uint64), np.array([len(tokens)]))
        return int((row + gumbel(torch.from_numpy(words)[0], torch.arange(len(row), dtype=torch.int32))).argmax())

    def count(self, tokens: tuple[int, ...]) -> int:
        if self.entropy is None:
            return int(self.most)
        row = self.logprobs(tokens)
        finite = row[row > -torch.inf]
        low, high = self.entropy
        share = min(1.0, max(0.0, (float(-(finite.exp() * finite).sum()) - low) / (high - low)))
        return 1 + int((self.most - 1) * share)

    def block(self, tokens: tuple[int, ...], seed: int) -> tuple[int, ...]:
        """A continuation of ``tokens`` up to where its block ends."""
        text, says = tokens, False
        while len(text) < min(self.total, len(tokens) + self.length):
            text += (self.draw(text, seed),)
            piece = self.pieces[text[-1]]
            says = says or any(character.isalnum() for character in piece)
            if says and piece.rstrip(" ") and piece.rstrip(" ")[-1] in self.marks:
                break
        return text

    def drawn(self, tokens: tuple[int, ...], place: int) -> list[tuple[int, ...]]:
        starts, means = self.blocks[tokens]
        sure, seeds = tokens, self.seeds[place * self.most : (place + 1) * self.most]
        while (count := self.count(sure)) == 1 and self.entropy is not None:
            sure += (self.draw(sure, seeds[0]),)
            if len(sure) == self.total or len(sure) - len(tokens) == self.length:
                self.blocks[sure] = ([*starts, len(tokens)], means)
                return [sure]
        texts = [self.block(sure, seed) for seed in seeds[:count]]
        begun = [*starts, len(tokens), len(sure)] if len(sure) > len(tokens) else [*starts, len(sure)]
        for text in texts:
            said = [float(self.logprobs(text[:i])[text[i]]) for i in range(len(sure), len(text))]
            self.blocks[text] = (begun, [*means, sum(said) / len(said)])
        return texts

    def score(self, tokens: tuple[int, ...]) -> float:
        by, reference = self.search["by"], self.world.reference
        if by == "likelihood":
            means = self.blocks[tokens][1]
            return sum(means) / len(means) if means else 0.0
        if by == "explicit":
            text = Text(reference.weights, self.prompts, tokens[:-1], len(tokens) - 1)
            parts = reference.chosen("explicit", {"preference": PREFERENCE})
            return float(reference.worth(text, torch.tensor([[tokens[-1]]]), parts, merged=False))
        text, ids = Text(reference.weights, self.prompts, tokens, 0), torch.tensor(tokens)[:, None]
        kept = [entry for entry in reference.manifest["values"] if without_preference(entry) and with_reference(entry)]
        total = 0.0
        for entry, share in reference.chosen("implicit", {"preference": PREFERENCE}, lambda entry: entry in kept):
            for names, sign in (({entry["name"]: 1.0}, 1), ({}, -1)):
                rows = text.logprobs(names, entry.get("base", ""), view_of(entry))[: len(tokens)]
                total += share * sign * float(rows.gather(1, ids).sum())
        return total

    def run(self) -> tuple[int, ...]:
        kept: list[tuple[int, ...]] = [()]
        self.blocks[()] = ([], [])
        while any(len(text) < self.total for text in kept):
            texts, place = [], 0
            for text in kept:
                if len(text) == self.total:
                    texts.append(text)
                else:
                    texts += self.drawn(text, place)
                    place += 1
            kept = sorted(dict.fromkeys(texts), key=self.score, reverse=True)[: self.search["beam"]]
        return kept[0]


def _tokens(outputs: Sequence[StepOutput]) -> list[int]:
    return [output.token for output in outputs]


@pytest.mark.parametrize("by", ["explicit", "implicit", "likelihood"])
def test_searches_equal_the_reference(world: World, rng: random.Random, by: str) -> None:
    engine = build(world.family, dtype="float64", max_lanes=120, draft_tokens=rng.choice([0, 3]))
    pieces = [engine.tokenizer.decode([token]) for token in range(engine.vocabulary)]
    special = set(engine.tokenizer.all_special_tokens)
    ends = [token for token, piece in enumerate(pieces) if piece in (".", ",", "\n", "?")]
    # Parts of characters, and special tokens: their text by themselves is not what they add to a text.
    strange = [token for token, piece in enumerate(pieces) if "\ufffd" in piece or piece in special]
    requests, expected = [], {}
    for index, until in enumerate(["sentence", "punctuation", rng.randint(1, 4), rng.randint(2, 4)]):
        steering = {**rng.choice(METHODS), "preference": PREFERENCE}
        prompts, seed, total = world.prompts(rng), rng.getrandbits(60), rng.randint(5, 9)
        bias = {**dict.fromkeys(ends, 4.0), **dict.fromkeys(strange, -99.0)} if isinstance(until, str) else {}
        search = {"by": by, "until": until, "draws": rng.randint(2, 4), "beam": rng.randint(1, 3)}
        if index % 2:
            # Bounds about where the entropies of these models lie, so that both are crossed.
            row = torch.log_softmax(world.reference.scores(steering, prompts)[0], -1)
            row = row[row > -torch.inf]
            centre = float(-(row.exp() * row).sum())
            spread = [max(0.0, centre - rng.uniform(0, 1)), centre + rng.uniform(0.1, 1)]
            search["draws"] = {"entropy": spread, "most": rng.randint(2, 5)}
        found = Reference(world, steering, search, prompts, seed, total, pieces, bias)
        expected[f"r{index}"] = (found.run(), found)
        sampling = {"max_tokens": total, "seed": seed, "logit_bias": tuple(bias.items()), "temperature": 1.0}
        requests.append(world.request(f"r{index}", {**steering, "search": search}, prompts, **sampling))
        requests.append(world.request(f"p{index}", steering, prompts, max_tokens=total))
    outputs = serve(engine, requests, rng)
    for name, (tokens, found) in expected.items():
        own = outputs[name]
        assert tuple(_tokens(own)) == tokens, found.search
        assert [output.completion_tokens for output in own] == list(range(1, len(tokens) + 1))
        assert own[-1].finish_reason == "length" and all(output.error is None for output in own)
        begins = [index for index, output in enumerate(own) if output.block is not None]
        assert begins == found.blocks[tokens][0]
        last = own[begins[-1]].block
        if last is not None and last.score is not None:
            assert last.score == pytest.approx(found.score(tokens), abs=1e-9)
        for begin in begins if found.entropy is not None else ():
            block = own[begin].block
            assert block is not None and block.draws == found.count(tokens[:begin])
        spent = [output.spent for output in own]
        assert sum(one.tokens for one in spent if one is not None) >= len(tokens)
        assert None not in spent


def test_one_draw_is_the_answer_without_a_search(world: World, rng: random.Random) -> None:
    engine = build(world.family)
    requests = []
    for index, steering in enumerate(METHODS):
        prompts, seed = world.prompts(rng), rng.getrandbits(60)
        options = {"max_tokens": 14, "seed": seed, "logprobs": 2, "presence_penalty": 0.5}
        sure = {"entropy": [19.0, 20.0], "most": 4}
        search = {"by": "likelihood", "until": rng.choice(["sentence", 4]), "draws": rng.choice([1, sure])}
        own = {**steering, "preference": PREFERENCE}
        requests.append(world.request(f"s{index}", {**own, "search": search}, prompts, **options))
        requests.append(world.request(f"p{index}", own, prompts, **options))
    outputs = serve(engine, requests, rng)
    for index in range(len(METHODS)):
        for one, plain in zip(outputs[f"s{index}"], outputs[f"p{index}"], strict=True):
            assert (one.token, one.text, one.finish_reason) == (plain.token, plain.text, plain.finish_reason)
            assert one.logprob == pytest.approx(plain.logprob, abs=1e-4)


def test_stop_strings_and_ends_of_text(world: World, rng: random.Random) -> None:
    """A text that has ended stays among those that are kept, and nothing behind a stop string is judged or shown."""
    engine = build(world.family)
    prompts = world.prompts(rng)
    steering = {"method": "bone_soup", "preference": PREFERENCE, "search": {"by": "explicit", "until": 5, "draws": 3}}
    whole = world.request("whole", steering, prompts, max_tokens=16, seed=5)
    full = "".join(output.text for output in serve(engine, [whole])["whole"])
    eos = next(iter(engine.eos))
    for beam in (1, 3):
        own = {**steering, "search": {**steering["search"], "beam": beam}}
        stops = tuple({full[2:4], "a", "e", "o"})
        cut = world.request("cut", own, prompts, max_tokens=24, seed=5, stop=stops)
        ended = world.request("eos", own, prompts, max_tokens=16, ignore_eos=False, logit_bias=((eos, 100.0),))
        outputs = serve(engine, [cut, ended])
        text = "".join(output.text for output in outputs["cut"])
        assert not any(stop in text for stop in stops)
        assert outputs["cut"][-1].finish_reason in ("stop", "length")
        assert _tokens(outputs["eos"]) == [eos] and outputs["eos"][0].finish_reason == "stop"


def test_seeds_batches_and_preemption_change_nothing(world: World, rng: random.Random) -> None:
    requests = []
    for index in range(4):
        steering = {**rng.choice(METHODS), "preference": PREFERENCE}
        by, draws = rng.choice(["explicit", "implicit", "likelihood"]), {"entropy": [3.0, 6.0], "most": 4}
        search = {"by": by, "until": 6, "draws": rng.choice([3, draws]), "beam": rng.choice([1, 2])}
        options = {"max_tokens": 30, "seed": rng.getrandbits(60), "temperature": 0.9}
        traced = {**steering, "search": search, "trace": rng.random() < 0.5}
        requests.append(world.request(f"r{index}", traced, world.prompts(rng, 30), **options))
    roomy = build(world.family, dtype="float64", max_sequences=60, max_lanes=240, kv_memory=32 << 20)
    expected = serve(roomy, requests)
    alone = serve(roomy, [replace(requests[0], request_id="alone")])["alone"]
    assert _tokens(alone) == _tokens(expected["r0"])
    # How many candidates there are at once, and so how small a pool is too small for them, is a matter of the draws.
    for memory in (7 << 16, 5 << 16, 4 << 16):
        small = build(world.family, dtype="float64", max_sequences=12, max_lanes=60, kv_memory=memory)
        found = serve(small, requests, rng)
        if small.stats().preemptions:
            break
    assert small.stats().preemptions
    for name, outputs in expected.items():
        assert _tokens(found[name]) == _tokens(outputs)
        told = [[one.block and (one.block.draws, one.block.score) for one in own] for own in (found[name], outputs)]
        assert told[0] == [block and (block[0], pytest.approx(block[1], abs=1e-9)) for block in told[1]]


def test_cancelled_and_failed_searches_leave_nothing_behind(world: World, rng: random.Random) -> None:
    engine = build(world.family, kv_memory=1 << 18, draft_tokens=rng.choice([0, 2]))
    collector = Collector()
    for index in range(6):
        draws = {"entropy": [3.0, 6.0], "most": 5} if index % 2 else 4
        search = {"by": ("explicit", "implicit", "likelihood")[index % 3], "until": 4, "draws": draws, "beam": 2}
        steering = {"method": "bone_soup", "preference": PREFERENCE, "search": search}
        engine.submit(world.request(f"r{index}", steering, world.prompts(rng), max_tokens=24, seed=index), collector)
    steps = rng.randint(1, 40)
    drain(engine, until=lambda: engine.stats().steps >= steps)
    gone = {name for name in ("r1", "r2") if not collector.finished(name)}
    for name in gone:
        engine.cancel(name)
    drain(engine)
    assert_idle(engine)
    assert not engine.led
    assert all(collector.reason(f"r{index}") == "length" for index in range(6) if f"r{index}" not in gone)
    IdleCheck(engine.check_idle).run()


def test_a_judge_that_says_nothing_fails_its_own_request(tmp_path: Path, rng: random.Random) -> None:
    world = World(tmp_path, rng, "llama", pblora=False)
    engine = build(world.family)
    for head in world.family.heads.values():
        head.weight.fill_(torch.nan)
    steering = {"method": "bone_soup", "preference": PREFERENCE, "search": {"by": "explicit", "until": 3, "beam": 2}}
    bad = world.request("bad", steering, world.prompts(rng))
    good = world.request("good", {**steering, "search": {"by": "likelihood", "until": 3}}, world.prompts(rng))
    outputs = serve(engine, [good, bad])
    assert outputs["bad"][-1].finish_reason == "error" and outputs["good"][-1].finish_reason == "length"
    assert not engine.led and not engine._sequences
    IdleCheck(engine.check_idle).run()
