"""What ladle reads of quantised checkpoints is what bitsandbytes, compressed-tensors, AutoGPTQ and AutoAWQ wrote.

Run by ``tools/layouts.py`` in an environment with these packages, which is told where ours are.
"""

from __future__ import annotations

import importlib.util
import site
import sys
import tempfile
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

site.addsitedir(sys.argv[1])
sys.path.append(str(Path(__file__).parents[2] / "fixtures"))
warnings.simplefilter("ignore")

import torch  # noqa: E402
from tiny_models import write_tiny_base  # noqa: E402
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, CompressedTensorsConfig  # noqa: E402

from ladle.merging.checkpoints import packed_weights  # noqa: E402
from ladle.merging.checkpoints.architecture import open_weights, read_architecture  # noqa: E402

GROUP = 32


def compare(what: str, folder: Path, expected: dict[str, torch.Tensor]) -> None:
    """Every weight of ``folder``, bit for bit."""
    weights, _ = open_weights(folder, read_architecture(folder))
    for name in weights.names:
        own = weights.tensor(name)
        assert torch.equal(own, expected[name].to(own.dtype)), (what, name)
    print(f"{what}: {len(weights.names)} weights are equal")


def bitsandbytes(base: Path, root: Path) -> None:
    import bitsandbytes as bnb

    nested = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    for index, options in enumerate((nested, {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
                                     {"load_in_8bit": True})):  # fmt: skip
        config = BitsAndBytesConfig(**options)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, quantization_config=config, device_map="cpu", dtype=torch.bfloat16
        )
        model.save_pretrained(root / str(index))
        expected = {name: parameter.data for name, parameter in model.named_parameters()}
        for path, module in model.named_modules():
            if isinstance(module, bnb.nn.Linear4bit):
                held = module.weight
                expected[f"{path}.weight"] = bnb.functional.dequantize_4bit(held.data, held.quant_state)
            elif isinstance(module, bnb.nn.Linear8bitLt):
                scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
                expected[f"{path}.weight"] = module.weight.data.float() * (scale.float() / 127)[:, None]
        compare(f"bitsandbytes {options}", root / str(index), expected)


def compressed_tensors(base: Path, root: Path) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    group = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "int4": ("pack-quantized", {**group, "symmetric": True}),
        "int4 with zeros": ("pack-quantized", {**group, "symmetric": False}),
        "int8 packed": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "fp8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
        "fp8 by tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
        "int8": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    }
    for name, (form, arguments) in kinds.items():
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
        config = QuantizationConfig(
            config_groups={"group_0": scheme}, ignore=["lm_head"], format=form, quantization_status="frozen"
        )
        apply_quantization_config(model, config)
        for module in model.modules():
            if hasattr(module, "weight_scale"):
                scale = module.weight_scale
                parts = module.weight.data.float().reshape(scale.numel(), -1)
                most = 448 if arguments["type"] == "float" else 2 ** (arguments["num_bits"] - 1) - 1
                scale.data = (parts.abs().amax(-1) / most).view(scale.shape).to(scale.dtype)
                if arguments.get("symmetric") is False:
                    zeros = torch.randint(-8, 8, module.weight_zero_point.shape)
                    module.weight_zero_point.data = zeros.to(module.weight_zero_point.dtype)
        compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
        compressor.compress_model(model)
        model.save_pretrained(root / name)
        compressor.update_config(root / name)
        plain: Any = AutoModelForCausalLM.from_pretrained(
            root / name, quantization_config=CompressedTensorsConfig(dequantize=True), dtype=torch.bfloat16
        )
        compare(f"compressed-tensors {name}", root / name, dict(plain.state_dict()))


def alone(path: str, **modules: types.ModuleType) -> Any:
    """A module of a package whose other parts need a GPU, without the package around it."""
    package, _, rest = path.partition(".")
    folder = importlib.util.find_spec(package)
    assert folder is not None and folder.origin is not None
    sys.modules.update({name.replace("__", "."): module for name, module in modules.items()})
    file = Path(folder.origin).parent.joinpath(*rest.split(".")).with_suffix(".py")
    spec = importlib.util.spec_from_file_location(f"alone_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layer(bits: int, least: int) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor]:
    """A layer whose weight is exactly (numbers - zeros) * scales, and its scales and zeros [out, groups]."""
    linear, top = torch.nn.Linear(128, 64, bias=False), 2**bits - 1
    groups = torch.arange(128) // GROUP
    scales = (torch.rand(64, 4) * 0.02 + 0.01).half().float()
    zeros = torch.randint(least, top + 1, (64, 4)).float()
    linear.weight.data = (torch.randint(0, top + 1, (64, 128)) - zeros[:, groups]) * scales[:, groups]
    return linear, scales, zeros


def gptq(base: Path, root: Path) -> None:
    quantized = alone("auto_gptq.nn_modules.qlinear.qlinear_cuda_old").QuantLinear
    for bits in (2, 4, 8):
        linear, scales, zeros = layer(bits, 1)  # stored less 1
        packed = quantized(bits, GROUP, 128, 64, False)
        packed.pack(linear, scales.clone(), zeros.clone(), None)
        own = packed_weights.gptq(bits, False)(
            {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")}
        )
        assert torch.equal(own, linear.weight), bits
        print(f"AutoGPTQ {bits} bits: equal")


def awq(base: Path, root: Path) -> None:
    empty = {f"awq__utils__{name}": types.ModuleType(name) for name in ("module", "utils")}
    empty["awq__utils__module"].try_import = lambda name: (None, "")  # type: ignore[attr-defined]
    empty["awq__utils__utils"].get_best_device = lambda: "cpu"  # type: ignore[attr-defined]
    packing = alone("awq.utils.packing_utils")
    around = {"awq": types.ModuleType("awq"), "awq__utils": types.ModuleType("utils")}
    gemm = alone("awq.modules.linear.gemm", **around, **empty, awq__utils__packing_utils=packing)
    linear, scales, zeros = layer(4, 0)
    packed = gemm.WQLinear_GEMM.from_linear(linear, 4, GROUP, False, scales.T.contiguous(), zeros.T.contiguous())
    own = packed_weights.awq({name: getattr(packed, name) for name in ("qweight", "qzeros", "scales")})
    assert torch.equal(own, linear.weight)
    print("AutoAWQ: equal")


if __name__ == "__main__":
    torch.manual_seed(0)
    checks: tuple[Callable[[Path, Path], None], ...] = (bitsandbytes, compressed_tensors, gptq, awq)
    with tempfile.TemporaryDirectory() as folder:
        base = write_tiny_base(
            Path(folder) / "base", "llama", 1, torch.bfloat16, tie=False, hidden_size=128, intermediate_size=256
        )
        for check in checks:
            check(base, Path(folder) / check.__name__)
