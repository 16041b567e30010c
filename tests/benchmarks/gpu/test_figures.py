"""The harness of ``make gpu``, end to end, on the CPU and with tiny sizes: its figures mean nothing here."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ladle.benchmarks.gpu import decode_shapes
from ladle.benchmarks.gpu import figures as gpu
from ladle.benchmarks.gpu import ops as kernels
from ladle.benchmarks.random_family import SHAPES, randomise, write_random_family
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.graphs import decode_graphs

ROOT = Path(__file__).resolve().parents[3]
TINY: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": False,
}  # fmt: skip


def test_all_of_it_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "results" / "cpu.csv"
    rows = gpu.write(
        out,
        gpu.measure(
            torch.device("cpu"),
            kernels.Sizes.tiny(),
            {"tiny": TINY},
            (1, 3),
            rounds=1,
            repeats=2,
            dtype="float32",
            small=True,
        ),
    )
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [{key: str(value) for key, value in row.items()} for row in rows] == written
    assert {row["name"] for row in rows if row["part"] == "op"} >= {
        "merge_weights", "expand_gated", "gated_lora", "paged_attention", "combine_logits", "sample", "fused_step",
        "route_tokens",
    }  # fmt: skip
    decode = [(row["case"], row["batch"]) for row in rows if row["part"] == "decode"]
    expected = [(case, batch) for batch in (1, 3) for case in ("plain", "16 preferences", "mage", "fusion_route")]
    assert decode == expected
    assert all(float(str(row[column])) > 0 for row in rows for column in ("ms", "compared_ms", "compared_over_this"))
    assert all(row["tokens_per_s"] == "" for row in rows if row["part"] == "op")
    assert gpu.table(rows).row_count == len(rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which need not be simulated")
def test_nothing_is_on_the_wrong_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness as it runs where there is a GPU, on one that is simulated."""
    pytest.importorskip("triton", reason="Triton is not on this platform")
    from simulated_gpu import simulated

    monkeypatch.setattr(decode_shapes, "STEPS", 1)
    sizes, device = kernels.Sizes.tiny(), torch.device("cuda")
    with simulated(monkeypatch):
        monkeypatch.setattr(decode_graphs, "LANES", (4,))
        # What is recorded here is the step itself: tests of steps compare the two.
        monkeypatch.setattr(decode_graphs.DecodeGraphs, "agrees", lambda graphs: True)
        made = gpu.measure(device, sizes, {"tiny": TINY}, (1,), rounds=1, repeats=1, dtype="float32", small=True)
        found = [(row["part"], row["name"], row["case"]) for row in made]
    assert [case for part, _, case in found if part == "decode"] == ["plain", "16 preferences", "mage", "fusion_route"]
    assert {name for part, name, _ in found if part == "op"} >= {"fused_step", "paged_attention", "merge_weights"}


def test_large_families_are_holes_until_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ladle.benchmarks.random_family._IN_FULL", 0)
    monkeypatch.setattr("ladle.kernels.cpu.packed_linear.can_pack", lambda: False)
    family = load_family(write_random_family(tmp_path / "family", TINY, torch.float32))
    engine = Engine(family, EngineConfig(device="cpu", dtype="float32", compiled_layers=False, kv_memory=1 << 20))
    model = engine.models.base.model
    group = model.model.layers[0].qkv
    assert not group.product.plain.any()
    randomise(engine)
    assert group.product.plain.std() > 0.1 and group.expand.plain.std() > 0.01
    assert (model.model.norm.weight == 1).all()
    engine.shutdown()


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path: Path) -> None:
    def row(part: str, name: str, ms: float, batch: object = "") -> dict[str, object]:
        return dict.fromkeys(gpu.COLUMNS, "") | {"part": part, "name": name, "ms": ms, "batch": batch}

    file = tmp_path / "gpu.csv"
    assert gpu.read(file) == []
    gpu.write(file, [row("op", "sample", 1.0), row("decode", "8B", 2.0, 1), row("decode", "8B", 3.0, 8)])
    made = gpu.write(file, iter([row("decode", "8B", 2.5, 1), row("decode", "135M", 4.0, 1)]))
    assert [one["ms"] for one in made] == [2.5, 4.0]
    found = [(one["name"], one["batch"], one["ms"]) for one in gpu.read(file)]
    assert found == [("sample", "", "1.0"), ("8B", "1", "2.5"), ("8B", "8", "3.0"), ("135M", "1", "4.0")]

    def ends_early() -> Any:
        yield row("op", "sample", 0.5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu.write(file, ends_early())
    assert len(gpu.read(file)) == 4 and gpu.read(file)[0]["ms"] == "0.5"
    file.write_text("other,columns\n1,2\n")
    assert gpu.read(file) == [] and [path.name for path in tmp_path.iterdir()] == ["gpu.csv"]


def test_names_and_what_fits() -> None:
    assert gpu.results_file("NVIDIA H200").name == "nvidia-h200.csv"
    assert gpu.results_file("AMD Instinct MI300X (gfx942)").name == "amd-instinct-mi300x-gfx942.csv"
    assert set(gpu.fitting(SHAPES, 140 << 30)) == {"135M", "1.5B", "8B"}
    assert set(gpu.fitting(SHAPES, 24 << 30)) == {"135M", "1.5B"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_fails() -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert len(result.stdout.splitlines()) == 1 and "no GPU is present" in result.stdout and not result.stderr
