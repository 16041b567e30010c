"""Loads of libraries come one after the other, and leave the process as it was."""

import logging
import os
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from ladle.merging.checkpoints.blueprint import Blueprint
from ladle.merging.checkpoints.library_lock import loading
from tests.fixtures.tiny_models import write_tiny_base


def test_what_a_load_leaves_changed_is_put_back_and_named(caplog: pytest.LogCaptureFixture) -> None:
    tie, uniform = PreTrainedModel.tie_weights, torch.nn.init.uniform_
    try:
        with caplog.at_level(logging.ERROR), loading("the test"):
            PreTrainedModel.tie_weights = lambda self: None  # type: ignore[method-assign,assignment]
            torch.nn.init.uniform_ = torch.nn.init.normal_  # type: ignore[assignment]
            torch.set_default_dtype(torch.float64)
            os.environ["TOKENIZERS_PARALLELISM"] = "perhaps"
        assert PreTrainedModel.tie_weights is tie and torch.nn.init.uniform_ is uniform
        assert torch.get_default_dtype() == torch.float32
        assert os.environ.get("TOKENIZERS_PARALLELISM") != "perhaps"
    finally:
        PreTrainedModel.tie_weights, torch.nn.init.uniform_ = tie, uniform  # type: ignore[method-assign]
        torch.set_default_dtype(torch.float32)
    (record,) = caplog.records
    for name in ("the test", "PreTrainedModel.tie_weights", "torch.nn.init.uniform_", "TOKENIZERS_PARALLELISM"):
        assert name in record.getMessage()


def test_a_load_that_fails_leaves_nothing_either() -> None:
    tie = PreTrainedModel.tie_weights
    with pytest.raises(KeyError), loading("the test"):
        PreTrainedModel.tie_weights = lambda self: None  # type: ignore[method-assign,assignment]
        raise KeyError("no")
    assert PreTrainedModel.tie_weights is tie


def test_a_load_that_changes_nothing_says_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path, "llama", 3)
    with caplog.at_level(logging.WARNING), loading("the test"):
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert not [record for record in caplog.records if record.name.startswith("ladle")]


def test_one_thread_at_a_time() -> None:
    inside, most = 0, 0

    def load() -> None:
        nonlocal inside, most
        for _ in range(50):
            with loading("the test"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_default_dtype_of_other_threads_stays_while_a_bfloat16_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to the whole process: an engine that computes meanwhile would get tensors of another dtype."""
    base = write_tiny_base(tmp_path, "gemma2", 5)
    blueprint = Blueprint(base)
    seen: list[torch.dtype] = []
    initialise = torch.nn.Module.__init__

    def watch(self: torch.nn.Module, *args: object, **options: object) -> None:
        seen.append(torch.get_default_dtype())
        initialise(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "__init__", watch)
    state = dict(AutoModelForCausalLM.from_pretrained(base).state_dict())
    seen.clear()
    model = blueprint.build(state.__getitem__, {}, torch.bfloat16, "eager")
    assert seen and set(seen) == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_building_from_a_blueprint_runs_beside_other_loads(tmp_path: Path) -> None:
    """What made two loads at once leave tie_weights empty for ever."""
    base = write_tiny_base(tmp_path, "llama", 7, tie=True)
    blueprint = Blueprint(base)
    state = dict(LlamaForCausalLM.from_pretrained(base).state_dict())
    tied = dict(blueprint.model.all_tied_weights_keys)
    tie, errors = PreTrainedModel.tie_weights, []

    def work(what: int) -> None:
        try:
            for _ in range(6):
                if what % 2:
                    model = blueprint.build(state.__getitem__, tied, torch.float32, "eager")
                    assert model.lm_head.weight is model.model.embed_tokens.weight
                else:
                    Blueprint(base)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and PreTrainedModel.tie_weights is tie
    assert AutoConfig.from_pretrained(base).model_type == "llama"
