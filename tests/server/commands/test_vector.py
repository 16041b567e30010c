"""``ladle vector``: from texts in pairs to a member that the family has from then on."""

import json
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from tiny_models import write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ladle.merging.family.family import load_family
from ladle.merging.members.contrast import Method, contrast
from ladle.server.commands import vector

app = typer.Typer()
app.command("vector")(vector.command)
PAIRS = [
    {"positive": "the garden was a gentle rain", "negative": "tell me a story"},
    {"prompt": "the sea", "positive": "yes, a little and the stars", "negative": "no"},
    {"prompt": "the sea", "system": "a story", "positive": "the rain", "negative": "the stars about the sea"},
]


@pytest.fixture
def root(tmp_path: Path, seed: int) -> Path:
    write_tiny_base(tmp_path / "base", "llama", seed % 1000)
    (tmp_path / "family.toml").write_text('name = "bare"\n[base]\nmodel = "base"')
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    return tmp_path


def run(root: Path, *arguments: str) -> Result:
    made = CliRunner().invoke(app, [str(root), *arguments])
    assert "Traceback" not in made.output
    return made


def states(root: Path, turns: list[dict[str, str]], text: str) -> torch.Tensor:
    """[tokens of the text, layers, hidden] by transformers, whose hidden states are those before each layer and, the
    last of them, behind the final norm; so the last layer's are taken by a hook."""
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    tokenizer = AutoTokenizer.from_pretrained(root / "base")
    before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) if turns else ""
    start = tokenizer(before, add_special_tokens=False)["input_ids"] if turns else []
    ids = [*start, *tokenizer(text, add_special_tokens=not turns)["input_ids"]]
    last = []
    model.model.layers[-1].register_forward_hook(lambda _, args, out: last.append(out))
    with torch.inference_mode():
        found = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.stack([*(layer[0] for layer in found[1:-1]), last[0][0]], dim=1)[len(start) if text else -1 :]


def of_turns(pair: dict[str, str]) -> list[dict[str, str]]:
    roles = {"system": "system", "prompt": "user"}
    return [{"role": role, "content": pair[key]} for key, role in roles.items() if key in pair]


@pytest.mark.parametrize(("method", "at"), [("mean", "mean"), ("pca", "last")])
def test_it_is_the_contrast_of_hidden_states(root: Path, method: Method, at: str) -> None:
    made = run(root, "calm", "--pairs", str(root / "pairs.jsonl"), "--method", method, "--at", at, "--json")
    assert made.exit_code == 0, made.output
    sides: dict[str, list[torch.Tensor]] = {"positive": [], "negative": []}
    for pair in PAIRS:
        for side, found in sides.items():
            own = states(root, of_turns(pair), pair[side])
            found.append(own.mean(0) if at == "mean" else own[-1])
    expected = contrast(torch.stack(sides["positive"]), torch.stack(sides["negative"]), method)
    directions = load_family(root).vectors["calm"].directions
    assert torch.allclose(directions, expected.float(), atol=2e-3 * expected.abs().max().item())
    assert json.loads(made.stdout)["norms"] == pytest.approx(expected.norm(dim=1).tolist(), rel=1e-3)


def test_two_texts_before_prompts_and_some_layers(root: Path) -> None:
    (root / "prompts.txt").write_text("the sea\nthe stars\n")
    texts = {"positive": "a gentle rain", "negative": "no story"}
    options = [f"--{side}={text}" for side, text in texts.items()]
    assert run(root, "calm", *options, "--layers", "1-1", "--prompts", str(root / "prompts.txt")).exit_code == 0
    both = [
        torch.cat(
            [states(root, of_turns({"system": text, "prompt": prompt}), "") for prompt in ("the sea", "the stars")]
        )
        for text in texts.values()
    ]
    expected = (both[0] - both[1]).mean(0)
    directions = load_family(root).vectors["calm"].directions
    assert not directions[0].any()
    assert torch.allclose(directions[1], expected[1], atol=2e-3 * expected.abs().max().item())


def test_nothing_is_overwritten_unless_forced(root: Path) -> None:
    first = ["calm", "--positive", "a gentle rain", "--negative", "no story"]
    assert run(root, *first).exit_code == 0
    before, manifest = load_family(root).vectors["calm"].directions, (root / "family.toml").read_text()
    other = ["calm", "--positive", "the sea", "--negative", "no story"]
    refused = run(root, *other)
    assert refused.exit_code == 2 and "--force" in refused.output
    assert torch.equal(load_family(root).vectors["calm"].directions, before)
    assert run(root, *other, "--force").exit_code == 0
    assert not torch.equal(load_family(root).vectors["calm"].directions, before)
    assert (root / "family.toml").read_text() == manifest
    (root / "vectors" / "stray.safetensors").write_bytes(b"mine")
    refused = run(root, "stray", *first[1:])
    assert refused.exit_code == 2 and "there already" in " ".join(refused.output.split())
    assert (root / "vectors" / "stray.safetensors").read_bytes() == b"mine"


AB = ["--positive", "a", "--negative", "b"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["calm"], "--pairs, or --positive and --negative"),
        (["calm", "--positive", "a"], "--pairs, or --positive and --negative"),
        (["calm", "--positive", "a", "--negative", "a"], "another text than positive"),
        (["calm", "--positive", "a", "--negative", " "], "negative"),
        (["calm", *AB, "--method", "sum"], "allowed: mean, pca"),
        (["calm", *AB, "--at", "first"], "allowed: mean, last"),
        (["calm", *AB, "--layers", "1-2"], "from 0 to 1"),
        (["calm", *AB, "--layers", "1"], "FIRST-LAST"),
        (["../calm", *AB], "letters, digits"),
    ],
)
def test_what_is_refused(root: Path, arguments: list[str], complaint: str) -> None:
    before = (root / "family.toml").read_text()
    made = run(root, *arguments)
    assert made.exit_code == 2 and complaint in " ".join(made.output.split())
    assert (root / "family.toml").read_text() == before and not (root / "vectors").exists()


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("", "1 to 4096 pairs"),
        ("no object", "pairs:1"),
        ('{"positive": "a"}', "pairs:1"),
        ('{"positive": "a", "negative": ""}', "pairs:1.negative"),
        ('{"positive": "a", "negative": "b", "question": "c"}', "pairs:1.question"),
        ('{"positive": "a", "negative": "b", "system": "c"}', "pairs:1.system"),
        ('{"positive": "a", "negative": "a"}', "the same to the base"),
    ],
)
def test_pairs_that_are_none(root: Path, lines: str, complaint: str) -> None:
    (root / "pairs.jsonl").write_text(lines)
    made = run(root, "calm", "--pairs", str(root / "pairs.jsonl"))
    assert made.exit_code == 2 and complaint in " ".join(made.output.split())


@pytest.mark.parametrize("method", ["mean", "pca"])
def test_what_pairs_share_is_what_is_found(seed: int, method: Method) -> None:
    generator = torch.Generator().manual_seed(seed)
    shared, sizes = torch.randn(2, 16, generator=generator), 1 + torch.rand(40, generator=generator)
    negative = torch.randn(40, 2, 16, generator=generator)
    found = contrast(negative + sizes[:, None, None] * shared, negative, method)
    assert torch.allclose(found.float(), shared * sizes.mean(), atol=1e-4)
