"""A base in int8 with a bank on top: the answers of an engine whose base has the same rounded weights."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from seeds import fresh_seed
from tiny_engine import alone, build, family_of, make_request, random_coefficients, random_prompt, serve
from torch import nn

from ladle.kernels.cpu.packed_linear import cpu_has_bfloat16
from ladle.kernels.cpu.tiled_product import quantise
from ladle.merging.exceptions import InputError
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward import loaded_model


def round_linears(model: nn.Module) -> None:
    """The weights of the linear layers of ``model`` as int8 holds them; a tied embedding keeps its own."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.weight = nn.Parameter(head.weight.detach().clone())
    for module in model.modules():
        if isinstance(module, nn.Linear):
            held, steps = quantise(module.weight.detach())
            module.weight.data = held.float() * torch.from_numpy(steps)[:, None]


@pytest.mark.parametrize("arch", ["llama", "gemma2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_are_those_of_the_rounded_base(
    tmp_path: Path, arch: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(fresh_seed())
    # All products in whole numbers, where the processor has them; in the other dtype some are and some not.
    wide = {"hidden_size": 64, "intermediate_size": 128} if dtype == "float32" else {}
    family = family_of(tmp_path, arch, full=(), **wide)
    quantized = build(family, dtype=dtype, quantize="int8", prefix_cache=False)
    if dtype == "bfloat16" and cpu_has_bfloat16():
        assert {layer.dtype for layer in quantized.models.caches[""].layers} == {torch.bfloat16}
    # The bank's factors are of float16 there, or of bfloat16, as keys and values are, and coefficients reach far.
    within = 1e-2 if dtype == "float32" else 0.15
    plain = build(family, dtype="float32", prefix_cache=False)
    assert quantized.models.base.nbytes < plain.models.base.nbytes
    install = loaded_model.gated.install

    def rounded(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        if dtype == "bfloat16":
            model.bfloat16().float()
        round_linears(model)
        return install(model, *arguments, **options)

    monkeypatch.setattr(loaded_model.gated, "install", rounded)
    reference = build(family, dtype="float32", prefix_cache=False)
    requests = [
        make_request(
            str(index),
            random_prompt(rng, 3, 60),
            random_coefficients(rng, list(family.low_rank)),
            max_tokens=6,
            temperature=0.0,
        )
        for index in range(4)
    ]
    together = serve(quantized, requests, rng)
    for request in requests:
        for got, wanted in zip(together[request.request_id], alone(reference, request), strict=True):
            assert got.logprob == pytest.approx(wanted.logprob, abs=within)
            if got.token != wanted.token:  # as good as each other, and from here on another text
                break
        outputs = alone(quantized, request)
        assert [output.logprob for output in outputs] == [output.logprob for output in together[request.request_id]]


def test_what_cannot_be_quantised_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quantize: 'int4' is not allowed.*allowed: none, int8"):
        EngineConfig(quantize="int4")
    with pytest.raises(InputError, match="quantize.*tensor_parallel"):
        EngineConfig(quantize="int8", tensor_parallel=2)
    with pytest.raises(InputError, match="quantize.*GPU"):
        EngineConfig(quantize="int8", device="cuda").resolve_device()
    with pytest.raises(InputError, match="quantize.*full weights.*ladle compress"):
        build(family_of(tmp_path, full=("bone-simple",)), quantize="int8")
