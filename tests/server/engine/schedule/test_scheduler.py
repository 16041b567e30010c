"""The scheduler and the block manager under random work, without a model."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import merged_plan, random_prompt

from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.kv.block_manager import BlockManager
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.scheduler import Scheduler
from ladle.server.engine.schedule.step_plan import StepPlan

MEMBERS = ("a", "b")
CONTEXT = 400


class Simulation:
    """Does to a scheduler what the engine does, with random tokens in place of a model's."""

    def __init__(self, rng: random.Random, blocks: int, **options: Any) -> None:
        self.rng = rng
        self.lanes = options.pop("lanes", 12)
        self.blocks = BlockManager(blocks)
        self.table = LaneTable(self.lanes, CONTEXT, MEMBERS, torch.float32, torch.device("cpu"))
        budget = max(options.pop("budget", 64), self.lanes + 2 * BLOCK_SIZE)
        self.scheduler = Scheduler(self.blocks, self.table, options.pop("most", 8), budget, **options)
        self.budget = budget
        self.held: dict[int, tuple[int, ...]] = {}
        self.steps = 0
        self.first_token: dict[str, int] = {}
        self.done: Counter[str] = Counter()

    def add(self, name: str, prompt: tuple[int, ...], tokens: int, lanes: int = 1, member: str = "a") -> Sequence:
        plan = merged_plan({member: 0.5}, trace=lanes > 1)
        request = GenerationRequest(name, prompt, plan, SamplingParams(max_tokens=tokens))
        bank = frozenset(MEMBERS)
        made = [Lane(s, WeightsKey.of("r", dict(s.coefficients)), prompt, bank) for s in plan.sources]
        sequence = Sequence(request, made)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> StepPlan:
        plan = self.scheduler.schedule()
        self._check(plan)
        self.scheduler.take_admitted()
        self.scheduler.take_fresh()
        self.scheduler.advance(plan)
        self.steps += 1
        for sequence in plan.sampling:
            sequence.output.append(self.rng.randrange(5))
            for lane in sequence.lanes:
                self.table.last[lane.row] = sequence.output[-1]
            self.first_token.setdefault(sequence.request_id, self.steps)
            if len(sequence.output) >= sequence.request.sampling.max_tokens:
                self.scheduler.finish(sequence)
                self.done[sequence.request_id] += 1
        self.integrity()
        return plan

    def _check(self, plan: StepPlan) -> None:
        """Within the budget; nothing twice; every token of a lane computed once and in order; its blocks its own."""
        computed = sum(len(s.lanes) for s in plan.decode) + sum(chunk.count for chunk in plan.chunks)
        assert computed <= self.budget
        assert len(set(map(id, plan.sampling))) == len(plan.sampling)
        assert not set(map(id, plan.decode)) & {id(chunk.sequence) for chunk in plan.chunks}
        assert len({id(chunk.lane) for chunk in plan.chunks}) == len(plan.chunks)
        written: Counter[int] = Counter()
        for sequence in plan.decode:
            assert sequence.slot is not None and sequence.output
            for lane in sequence.lanes:
                length = sequence.length(lane)
                assert self.table.computed[lane.row] == length - 1
                assert self.table.last[lane.row] == sequence.tokens(lane, length - 1, length)[0]
                self._writes(written, lane, length - 1, length)
        for chunk in plan.chunks:
            assert chunk.sequence.slot is not None
            assert chunk.start == self.table.computed[chunk.lane.row] and chunk.count > 0
            end = chunk.start + chunk.count
            assert (end == chunk.sequence.length(chunk.lane)) == chunk.final
            self._writes(written, chunk.lane, chunk.start, end)
        for sequence in plan.sampling:
            lanes = {id(c.lane) for c in plan.chunks if c.final and c.sequence is sequence}
            assert sequence in plan.decode or lanes == {id(lane) for lane in sequence.lanes}

    def _writes(self, written: Counter[int], lane: Lane, start: int, stop: int) -> None:
        assert list(self.table.blocks[lane.row, : len(lane.blocks)]) == lane.blocks
        assert len(lane.blocks) * BLOCK_SIZE >= stop
        for block in {lane.blocks[position // BLOCK_SIZE] for position in range(start, stop)}:
            written[block] += 1
            assert block != 0 and written[block] == 1, "two lanes write one block"
            assert self.blocks._references[block] == 1, "a shared block is written"

    def integrity(self) -> None:
        scheduler = self.scheduler
        self.blocks.check_integrity(scheduler.held_blocks())
        rows = [lane.row for s in scheduler.running for lane in s.lanes]
        assert len(set(rows)) == len(rows) and len(rows) + self.table.free == self.lanes
        slots = [s.slot for s in scheduler.running]
        assert len(set(slots)) == len(slots) and len(slots) + len(scheduler._slots) == scheduler.max_sequences
        assert all(lane.row is None and not lane.blocks for s in scheduler.waiting for lane in s.lanes)

    def finish(self, most: int = 4000) -> None:
        idle = 0
        for _ in range(most):
            if not (self.scheduler.running or self.scheduler.waiting):
                break
            idle = 0 if self.step() else idle + 1
            assert idle < 3, "work is left and nothing is planned"
        assert not self.scheduler.running and not self.scheduler.waiting, "starved"
        assert self.blocks.free == self.blocks.total and self.table.free == self.lanes


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_random_work_keeps_every_promise(prefix_cache: bool) -> None:
    rng = random.Random(fresh_seed())
    preempted = shared = 0
    for _ in range(25):
        blocks = rng.randint(30, 70)
        simulation = Simulation(
            rng, blocks, prefix_cache=prefix_cache, budget=rng.choice([1, 60, 300]), most=rng.randint(1, 9),
            lanes=rng.randint(4, 20),
        )  # fmt: skip
        live: list[Sequence] = []
        prompts = [random_prompt(rng, 1, 130, 20) for _ in range(5)]
        sent = cancelled = 0
        for _ in range(120):
            action = rng.random()
            if action < 0.35:
                prompt = rng.choice(prompts)
                prompt = (prompt[: rng.randint(1, len(prompt))] + random_prompt(rng, 1, 30, 20))[:160]
                tokens, lanes = rng.randint(1, 60), rng.choice([1, 1, 2])
                if lanes * -(-(len(prompt) + tokens) // BLOCK_SIZE) <= simulation.blocks.total:
                    live.append(simulation.add(f"s{sent}", prompt, tokens, lanes, rng.choice(MEMBERS)))
                    sent += 1
            elif action < 0.42 and live:
                victim = live.pop(rng.randrange(len(live)))
                cancelled += not simulation.done[victim.request_id]
                simulation.scheduler.finish(victim)
                simulation.scheduler.finish(victim)
                simulation.integrity()
            elif action < 0.43:
                simulation.blocks.forget_prefixes()
            else:
                simulation.step()
        simulation.finish()
        assert sum(simulation.done.values()) == sent - cancelled
        assert not simulation.done or max(simulation.done.values()) == 1
        preempted += simulation.scheduler.preemptions
        shared += simulation.scheduler.prefix_hits
    assert preempted > 0 and (shared > 0) == prefix_cache


def test_first_come_first_served_and_nobody_starves() -> None:
    """A stream of new requests never overtakes one that waits, however large that one is."""
    rng = random.Random(fresh_seed())
    simulation = Simulation(rng, 30, most=4)
    for index in range(3):
        simulation.add(f"early{index}", random_prompt(rng, 60, 60), 20)
    large = simulation.add("large", random_prompt(rng, 380, 380), 20)
    for index in range(300):
        simulation.add(f"late{index}", random_prompt(rng, 10, 30), 10)
        simulation.step()
        if large.slot is not None:
            break
    names = {s.request_id for s in simulation.scheduler.running[: simulation.scheduler.running.index(large)]}
    assert not any(name.startswith("late") for name in {*names, *simulation.first_token})
    simulation.finish()


@pytest.mark.parametrize("long_prompts", [1, 3])
def test_a_short_prompt_beside_long_ones_is_answered_soon(long_prompts: int) -> None:
    rng = random.Random(fresh_seed())
    simulation = Simulation(rng, 200, budget=64)
    for index in range(long_prompts):
        simulation.add(f"long{index}", random_prompt(rng, 390, 390), 4)
    simulation.step()
    start = simulation.steps
    simulation.add("short", random_prompt(rng, 16, 16), 4)
    simulation.finish()
    # Its fair share of every step is budget / (long + 1) tokens.
    assert simulation.first_token["short"] - start <= -(-16 * (long_prompts + 1) // 64)
    assert all(simulation.first_token["short"] < simulation.first_token[f"long{i}"] for i in range(long_prompts))


def test_decode_goes_on_beside_a_long_prefill() -> None:
    rng = random.Random(fresh_seed())
    simulation = Simulation(rng, 200, budget=64)
    talking = simulation.add("talking", random_prompt(rng, 5, 5), 30)
    simulation.step()
    simulation.add("long", random_prompt(rng, 390, 390), 4)
    for count in range(2, 20):
        simulation.step()
        assert len(talking.output) == count


def test_one_that_is_not_ready_is_passed_over() -> None:
    rng = random.Random(fresh_seed())
    merging = {"slow"}
    simulation = Simulation(rng, 60, ready=lambda sequence: sequence.request_id not in merging)
    simulation.add("slow", random_prompt(rng, 10, 10), 3)
    simulation.add("quick", random_prompt(rng, 10, 10), 3)
    for _ in range(5):
        simulation.step()
    assert simulation.done["quick"] == 1 and "slow" not in simulation.first_token
    merging.clear()
    simulation.finish()
    assert simulation.done["slow"] == 1
