"""Files that lie or were cut: every one is refused with one message that names it, whoever reads it."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from guided_folder import write_guided_family
from routed_folder import write_router_head
from safetensors.torch import load_file
from tiny_models import rewrite_tensors, write_full_member, write_lora_member
from typer.testing import CliRunner

from ladle.merging.checkpoints.architecture import read_architecture
from ladle.merging.checkpoints.vocabulary import largest_id, vocabulary_hash
from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.members.adapter import load_peft
from ladle.merging.members.pblora import load_pblora

FILES = {
    "base": "base/model.safetensors",
    "further model": "amateur/model.safetensors",
    "adapter": "adapters/bone-positive/adapter_model.safetensors",
    "full member": "values/score-simple/model.safetensors",
    "PBLoRA": "values/arm/adapter_model.safetensors",
    "scalar head": "values/score-positive/value_head.safetensors",
    "router's head": "router/router_head.safetensors",
}
ROUTED = '[[experts]]\nname = "math"\npath = "math"\n[router]\npath = "router"\n'


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family with a file of every kind; whoever breaks one mends it."""
    root = write_guided_family(tmp_path_factory.mktemp("hostile"), seed=3)
    for name, seed in (("math", 1), ("router", 2)):
        write_lora_member(root / name, root / "base", seed)
    write_router_head(root / "router", 1, 32, 3)
    with (root / "family.toml").open("a") as manifest:
        manifest.write(ROUTED)
    load_family(root)
    return root


@pytest.fixture(params=FILES)
def victim(family: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    file = family / FILES[request.param]
    sound = file.read_bytes()
    yield file
    file.write_bytes(sound)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def changed(data: bytes, change: Callable[[dict[str, Any], str], None]) -> bytes:
    """``data`` with its header's first tensor, by name, changed."""
    header, body = split(data)
    change(header, next(name for name in header if name != "__metadata__"))
    return joined(json.dumps(header).encode(), body)


def entry(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda data: changed(data, lambda header, name: header[name].update({key: value}))


def overlapping(data: bytes) -> bytes:
    def change(header: dict[str, Any], name: str) -> None:
        header["again"] = dict(header[name])

    return changed(data, change)


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "a length of 2^62": lambda data: struct.pack("<Q", 1 << 62) + data[8:],
    "a length beyond the file": lambda data: struct.pack("<Q", len(data) + 1) + data[8:],
    "a length that cuts the header": lambda data: struct.pack("<Q", int.from_bytes(data[:8], "little") - 5) + data[8:],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "the last byte cut": lambda data: data[:-1],
    "bytes behind the end": lambda data: data + b"more",
    "a header that is a list": lambda data: joined(b"[]", data),
    "brackets without end": lambda data: joined(b"[" * 200_000, data),
    "an entry that is a number": lambda data: changed(data, lambda header, name: header.update({name: 3})),
    "offsets beyond the file": entry("data_offsets", [1 << 40, 1 << 41]),
    "offsets that go back": entry("data_offsets", [8, 0]),
    "tensors that overlap": overlapping,
    "a shape that overflows": entry("shape", [1 << 40, 1 << 40]),
    "a negative shape": entry("shape", [-1, 4]),
    "an unknown dtype": entry("dtype", "F7"),
    "whole numbers": entry("dtype", "I32"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("victim", ["base", "adapter", "scalar head", "router's head"], indirect=True)
def test_a_file_that_lies_is_named(family: Path, victim: Path, broken: str) -> None:
    victim.write_bytes(BROKEN[broken](victim.read_bytes()))
    with pytest.raises(FamilyError) as caught:
        load_family(family)
    assert str(victim) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_value_that_is_no_number_is_named(family: Path, victim: Path, bad: float) -> None:
    name, tensor = next(iter(load_file(victim).items()))
    tensor = tensor.clone()
    tensor.view(-1)[-1] = bad
    rewrite_tensors(victim, {name: tensor})
    with pytest.raises(FamilyError, match="1 of .* values are NaN or infinite") as caught:
        load_family(family)
    assert caught.value.file == str(victim) and caught.value.tensor == name


NASTY: list[Any] = [None, True, 0, -1, 3.5, math.nan, 10**30, "", "x", "[", [], ["x"], [1], {}, {"a": "b"}, {"[": 1},
                    {".*": "x"}, {"q_proj": None}, {"q_proj": -3}]  # fmt: skip


@pytest.mark.parametrize("of", ["adapter", "PBLoRA"])
def test_settings_of_the_wrong_kind_are_refused_or_harmless(family: Path, of: str) -> None:
    """Whatever an adapter's config holds, it is read or refused by name."""
    config = (family / FILES[of]).parent / "adapter_config.json"
    sound, document = config.read_text(), json.loads(config.read_text())
    linear = read_architecture(family / "base").linear
    refused = 0
    for key in (*document, "rank_pattern", "alpha_pattern", "use_rslora", "bias", "modules_to_save", "use_dora"):
        for value in NASTY:
            config.write_text(json.dumps({**document, key: value}))
            try:
                if of == "adapter":
                    load_peft(config.parent, "m", linear)
                else:
                    load_pblora(config.parent, "m", ["positive", "simple"], linear)
            except FamilyError as error:
                refused += 1
                assert str(config.parent) in error.file
    config.write_text(sound)
    assert refused > len(NASTY)


@pytest.mark.parametrize("place", [["model"], ["model", "vocab"], ["model", "merges"], ["added_tokens"],
                                   ["added_tokens", 0], ["added_tokens", 0, "id"]])  # fmt: skip
def test_a_tokenizer_that_is_none(family: Path, tmp_path: Path, place: list[Any]) -> None:
    file = tmp_path / "tokenizer.json"
    refused = 0
    for value in NASTY:
        document = json.loads((family / "base" / "tokenizer.json").read_text())
        inner: Any = document
        for step in place[:-1]:
            inner = inner[step]
        inner[place[-1]] = value
        file.write_text(json.dumps(document))
        try:
            vocabulary_hash(file)
            largest_id(file)
        except FamilyError as error:
            refused += 1
            assert error.file == str(file)
    assert refused


def test_check_says_it_in_one_line(family: Path) -> None:
    import typer

    from ladle.server.commands.check import command

    file = family / FILES["base"]
    sound = file.read_bytes()
    rewrite_tensors(file, {"model.norm.weight": torch.full((32,), math.nan)})
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(family)])
    file.write_bytes(sound)
    assert result.exit_code == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == [f"error: {file}: tensor model.norm.weight: 32 of 32 values are NaN or infinite"]


@pytest.mark.parametrize(
    "tensor", ["model.norm.weight", "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("change", ["missing", "flat", "whole numbers"])
def test_every_weight_of_the_base_must_be_there(family: Path, tensor: str, change: str) -> None:
    """A missing one would be drawn at random, and nobody would know."""
    file = family / FILES["further model"]
    sound = file.read_bytes()
    found = load_file(file)[tensor]
    replacement = {"missing": None, "flat": found.reshape(-1)[:7].clone(), "whole numbers": found.to(torch.int32)}
    rewrite_tensors(file, {tensor: replacement[change]})
    try:
        with pytest.raises(FamilyError) as caught:
            load_family(family)
    finally:
        file.write_bytes(sound)
    assert caught.value.tensor == tensor and str(file.parent) in caught.value.file


def test_families_that_lead_back_to_themselves(tmp_path: Path) -> None:
    """Nothing follows a circle: of links, of folders, or of names."""
    root = tmp_path / "family"
    root.mkdir()
    manifest = root / "family.toml"

    def refused(text: str, words: str) -> None:
        manifest.unlink(missing_ok=True)
        manifest.write_text(f'name = "circle"\n{text}')
        with pytest.raises(FamilyError, match=words):
            load_family(root)

    refused('[base]\nmodel = "."', "config.json")
    refused('[base]\nmodel = ".."', "config.json")
    (root / "link").symlink_to(root, target_is_directory=True)
    refused('[base]\nmodel = "link/link/link"', "config.json")
    (root / "loop").symlink_to(root / "loop")
    refused('[base]\nmodel = "./loop"', "no such folder")
    os.symlink("../family/base", root / "base")
    refused('[base]\nmodel = "./base"', "no such folder")
    refused('[base]\nmodel = "x"\n' + "a = " + "[" * 100_000, "TOML")
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(FamilyError, match=r"family\.toml"):
        load_family(root)
    manifest.unlink()


def test_members_that_are_each_others_folders(tmp_path: Path) -> None:
    root = write_guided_family(tmp_path, seed=4)
    manifest = root / "family.toml"
    text = manifest.read_text()
    loop = root / "adapters" / "bone-simple"
    loop.rename(root / "aside")
    loop.symlink_to(loop)
    with pytest.raises(FamilyError, match="bone-simple.*no such folder"):
        load_family(root)
    loop.unlink()
    loop.symlink_to(root, target_is_directory=True)
    with pytest.raises(FamilyError, match="no model.safetensors"):
        load_family(root)
    loop.unlink()
    # A member that is its own base is a strange one, but a member.
    write_full_member(loop, root / "base", 1)
    manifest.write_text(text.replace('"adapters/only-simple"', '"base"'))
    assert load_family(root).singles["simple"] == "only-simple"
