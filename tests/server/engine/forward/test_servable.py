"""What ``ladle check`` lets through, the engine serves; what it does not, it refuses with a sentence."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import build, make_request, serve
from transformers import AutoConfig, AutoModelForCausalLM

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.server.engine.forward.servable import require_servable
from tests.fixtures.tiny_models import save_checkpoint, write_tiny_base

_LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64, "n_inner": 48}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "falcon": ({"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}, "cannot be replaced"),
    "gptj": (_GPT, "cannot be replaced"),
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "cannot be replaced"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "cannot be replaced"),
    "codegen": (_GPT, "cannot be replaced"),
    "stablelm": (_LLAMA, "cannot be replaced"),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, "linear_attention"),
    "nemotron": (_LLAMA, "0 of 2 layers attend"),
    "gpt_oss": ({**_LLAMA, "num_local_experts": 2, "num_experts_per_tok": 1}, "attention sinks"),
    "doge": ({**_LLAMA, "num_experts": 4}, "attention_mask"),
    "diffllama": (_LLAMA, "attend 4 times"),
    "bert": (_LLAMA, "not causal"),
    "xglm": ({"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}, "cannot be replaced"),
}
SERVED: dict[str, dict[str, Any]] = {
    "gpt_neox": _LLAMA,
    "mixtral": {**_LLAMA, "num_local_experts": 3},
    "gpt2": _GPT,
    "opt": {**_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phimoe": {**_LLAMA, "num_local_experts": 3},
    # Half of each head is turned, in layers of Llama's shape.
    "glm4_moe": {
        **_LLAMA, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
        "topk_group": 1, "first_k_dense_replace": 1,
    },
    # Asks a linear layer for the dtype of its weight.
    "hunyuan_v1_moe": {**_LLAMA, "num_experts": 4, "moe_topk": 2},
}  # fmt: skip


def write_family_of(root: Path, kind: str, options: dict[str, Any], seed: int) -> Path:
    torch.manual_seed(seed)
    special = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": 320}
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **special, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    save_checkpoint(model, root / "base")
    (root / "family.toml").write_text('name = "x"\nobjectives = ["a"]\n[base]\nmodel = "base"\n')
    return root


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_check_with_a_sentence(kind: str, tmp_path: Path) -> None:
    options, reason = REFUSED[kind]
    family = load_family(write_family_of(tmp_path, kind, options, fresh_seed()))
    with pytest.raises(FamilyError, match=reason) as caught:
        require_servable(family)
    message = str(caught.value)
    assert re.search(r"config\.json: this architecture cannot be served: [^\n]{15,}$", message), message
    with pytest.raises(FamilyError):
        build(family)  # the engine says no as well


@pytest.mark.parametrize("kind", SERVED)
def test_passed_by_check_and_served_as_transformers_computes_it(kind: str, tmp_path: Path) -> None:
    family = load_family(write_family_of(tmp_path, kind, SERVED[kind], fresh_seed()))
    require_servable(family)
    prompt = torch.randint(3, 300, (30,)).tolist()
    request = make_request("r", prompt, {}, max_tokens=5, temperature=0.0, ignore_eos=True, prompt_logprobs=True)
    outputs = serve(build(family), [request])["r"]
    tokens = prompt + [output.token for output in outputs]
    model: Any = AutoModelForCausalLM.from_pretrained(family.base_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.log_softmax(model(input_ids=torch.tensor([tokens])).logits[0], -1)
    ours = [token.logprob for token in outputs[0].prompt or ()] + [output.logprob for output in outputs]
    assert len(ours) == len(tokens) - 1
    for place, logprob in enumerate(ours):
        assert logprob == pytest.approx(expected[place, tokens[place + 1]].item(), abs=1e-4)


def test_a_base_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "base", "llama", fresh_seed())
    for file in base.glob("tokenizer*"):
        file.unlink()
    (tmp_path / "family.toml").write_text('name = "x"\nobjectives = ["a"]\n[base]\nmodel = "base"\n')
    with pytest.raises(FamilyError, match="tokenizer"):
        require_servable(load_family(tmp_path))


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = load_family(write_family_of(tmp_path, "llama", _LLAMA, fresh_seed()))
    monkeypatch.setattr(type(family.base), "tensor", lambda *_: pytest.fail("a weight was read"))
    require_servable(family)
