"""lm-evaluation-harness' command line through ``local-completions``, on tasks and texts that lie beside it.

Nothing is fetched: the tasks' data are written here, at random, and the tokenizer is the family's.
"""

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from doc_blocks import blocks
from reference_decoder import ReferenceDecoder
from seeds import fresh_seed
from server_process import Server
from transformers import AutoTokenizer

WORDS = ["the", "rain", "in", "garden", "was", "a", "gentle", "story", "about", "sea", "and", "stars", "yes", "little"]
STEERING = {
    "method": "mage",
    "preference": {"positive": 1.0},
    "value": "implicit",
    "combine": "merged",
    "strength": 1.0,
}
TOLERANCE = 1e-4
TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": " {{choices[0]}}",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "go_on": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n", ".", "<|endoftext|>", "?", ";"], "max_gen_toks": 4, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def documented(server: Server) -> str:
    """The ``--model_args`` of the command in docs/clients.md."""
    (block,) = [block for block in blocks() if block.text.startswith("lm_eval run")]
    (found,) = re.findall(r"--model_args (\S+)", block.text)
    assert "model=demo/mage@positive=1," in found
    return found.replace("http://localhost:8000", server.url).replace("FOLDER", str(server.root / "base"))


def sentence(rng: random.Random, shortest: int, longest: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(shortest, longest)))


def write_tasks(folder: Path, rng: random.Random, documents: int) -> None:
    """The tasks over ``documents`` random documents; what is greedy is asked for too, where it is text."""
    lines = [
        {
            "question": sentence(rng, 1, 12),
            "choices": [f" {sentence(rng, 1, 3)}" for _ in range(3)],
            "answer": rng.randrange(3),
            "text": sentence(rng, 5, 60),
        }
        for _ in range(documents)
    ]
    (folder / "data.json").write_text("\n".join(map(json.dumps, lines)))
    for name, task in {**TASKS, "chat": CHAT}.items():
        whole = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / "data.json")}},
            "test_split": "test",
            "target_delimiter": "",
            **task,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(whole))


def environment(folder: Path, key: str) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    return {**os.environ, **offline, "OPENAI_API_KEY": key, "TOKENIZERS_PARALLELISM": "false"}


CHAT = {
    "output_type": "generate_until",
    "doc_to_text": "{{question}}",
    "doc_to_target": "{{choices[0]}}",
    "generation_kwargs": {
        "until": ["no such text"],
        "max_gen_toks": 40,
        "do_sample": False,
        # What the harness does not know goes into the body as it is.
        "steering": {"preference": {"concise": 1}},
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "wet", "schema": {"enum": ["dry", "wet"]}},
        },
    },
    "metric_list": [{"metric": "exact_match"}],
}
EVALUATE = """
import json, sys
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
arguments, folder = sys.argv[1:]
# Without the harness' own tasks, whose index takes longer than all the rest.
tasks = TaskManager(include_path=folder, include_defaults=False)
found = simple_evaluate("local-completions", arguments, ["choice", "last_word", "whole_text", "go_on"],
                        task_manager=tasks, batch_size=5)
chat = arguments.replace("/v1/completions", "/v1/chat/completions").replace("model=demo/mage@positive=1", "model=demo")
said = simple_evaluate("local-chat-completions", chat, ["chat"], task_manager=tasks, apply_chat_template=True)
found["samples"] |= said["samples"]
with open(f"{folder}/found.json", "w") as file:
    json.dump({"results": found["results"], "samples": found["samples"]}, file, default=str)
"""


class Judge:
    """The same numbers in float64, every text anew."""

    def __init__(self, root: Path) -> None:
        self.reference = ReferenceDecoder(root)
        self.tokenizer = AutoTokenizer.from_pretrained(root / "base")

    def ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return found

    def rows(self, ids: list[int]) -> torch.Tensor:
        scores = self.reference.scores(STEERING, {None: ids[:1]}, ids[1:])
        return torch.log_softmax(scores[:-1], dim=-1)

    def continuation(self, context: str, text: str) -> tuple[float, bool, float]:
        """Log-likelihood of ``text`` after ``context``, whether it is the greedy one, and how surely that is known."""
        whole, start = self.ids(context + text), len(self.ids(context))
        rows, targets = self.rows(whole)[start - 1 :], torch.tensor(whole[start:])
        own = rows.gather(1, targets[:, None])[:, 0]
        best = rows.max(dim=-1).values
        second = rows.topk(2).values[:, 1]
        return float(own.sum()), bool((rows.argmax(dim=-1) == targets).all()), float((best - second).min())

    def agrees(self, prompt: str, text: str) -> bool:
        """Whether ``text`` is what greedy decoding adds to ``prompt``, up to where a stop string cut it."""
        ids, worst = self.ids(prompt), math.inf
        tokens = self.reference.greedy(STEERING, {None: ids}, 4)
        for count in range(len(tokens)):
            best = self.reference.scores(STEERING, {None: ids}, tokens[:count], count)[0].topk(2).values
            worst = min(worst, float(best[0] - best[1]))
        greedy = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return greedy.startswith(text.rstrip("\ufffd")) or worst < TOLERANCE

    def rolling(self, text: str) -> float:
        ids = [self.tokenizer.bos_token_id, *self.ids(text)]
        return float(self.rows(ids).gather(1, torch.tensor(ids[1:])[:, None]).sum())


def test_its_numbers_are_those_of_the_formula(server: Server, tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    write_tasks(tmp_path, rng, 6)
    line = [sys.executable, "-c", EVALUATE, documented(server), str(tmp_path)]
    done = subprocess.run(
        line, env=environment(tmp_path, server.key), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    judge = Judge(server.root)
    for sample in [*found["samples"]["choice"], *found["samples"]["last_word"]]:
        for (context, text), (loglikelihood, greedy) in zip(sample["arguments"], sample["filtered_resps"], strict=True):
            expected, best, margin = judge.continuation(context, text)
            assert loglikelihood == pytest.approx(expected, abs=TOLERANCE * len(text)), (context, text)
            assert margin < TOLERANCE or greedy == best, (context, text)
    for sample in found["samples"]["whole_text"]:
        ((text,),), (loglikelihood,) = sample["arguments"], sample["filtered_resps"]
        assert loglikelihood == pytest.approx(judge.rolling(text), abs=TOLERANCE * len(text))
    for sample in found["samples"]["go_on"]:
        ((context, _),), (text,) = sample["arguments"], sample["filtered_resps"]
        assert judge.agrees(context, text)
    assert len(found["samples"]["chat"]) == 6
    for sample in found["samples"]["chat"]:
        assert sample["filtered_resps"][0] in ('"dry"', '"wet"')
    pairs = [sample["arguments"][0] for sample in found["samples"]["last_word"]]
    likely = [judge.continuation(context, text)[0] for context, text in pairs]
    perplexity = math.exp(-sum(likely) / len(likely))
    assert found["results"]["last_word"]["perplexity,none"] == pytest.approx(perplexity, rel=1e-3)


ENDLESS = """
import sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
url, tokenizer = sys.argv[1:]
lm = LocalCompletionsAPI(base_url=url, tokenizer_backend="huggingface", tokenizer=tokenizer, model="demo", batch_size=3)
options = {"until": ["no such text"], "max_gen_toks": 2000, "logit_bias": {"2": -100, "0": -100}}
lm.generate_until([Instance("generate_until", {}, (f"{word} rain", options), word) for word in range(3)])
"""


def test_a_run_that_is_killed_frees_its_lanes(server: Server, tmp_path: Path) -> None:
    line = [sys.executable, "-c", ENDLESS, f"{server.v1}/completions", str(server.root / "base")]
    with server.abandoned(3):
        process = subprocess.Popen(line, env=environment(tmp_path, server.key), stderr=subprocess.PIPE, text=True)
        try:
            server.wait(running=True, seconds=120, alive=lambda: process.poll() is None)
        finally:
            process.kill()
            _, errors = process.communicate()
            print(errors)
