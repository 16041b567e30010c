"""Code that a checkpoint brings along never runs, whether what it stands for can be served without it or not."""

from pathlib import Path

import pytest
from tiny_models import rewrite_json, write_family

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig

CODE = """
from pathlib import Path
Path({marker!r}).write_text("it ran")
from transformers import {parent}
class Foreign({parent}):
    model_type = "foreign"
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = write_family(tmp_path / "family", "llama", seed=1) / "base"
    for parent in ("PretrainedConfig", "LlamaForCausalLM", "PreTrainedTokenizerFast"):
        (folder / f"foreign_{parent.lower()}.py").write_text(CODE.format(marker=str(tmp_path / "ran"), parent=parent))
    return folder


def load(base: Path) -> Engine:
    config = EngineConfig(device="cpu", dtype="float32", max_sequences=1, kv_memory=1 << 20)
    return Engine(load_family(base.parent), config)


AUTO_MAP = {
    "AutoConfig": "foreign_pretrainedconfig.Foreign",
    "AutoModelForCausalLM": "foreign_llamaforcausallm.Foreign",
    "AutoTokenizer": [None, "foreign_pretrainedtokenizerfast.Foreign"],
}


def test_what_is_known_is_served_without_it(base: Path, tmp_path: Path) -> None:
    rewrite_json(base / "config.json", auto_map=AUTO_MAP)
    rewrite_json(base / "tokenizer_config.json", auto_map={"AutoTokenizer": AUTO_MAP["AutoTokenizer"]})
    load(base)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_what_needs_it_is_refused_by_name(base: Path, tmp_path: Path, file: str) -> None:
    rewrite_json(base / "config.json", auto_map=AUTO_MAP)
    if file == "config.json":
        rewrite_json(base / file, model_type="foreign")
    else:
        rewrite_json(base / file, auto_map={"AutoTokenizer": AUTO_MAP["AutoTokenizer"]}, tokenizer_class="Foreign")
    try:
        load(base)
    except FamilyError as error:
        assert file in str(error) and "custom code" in str(error)
    else:
        assert file != "config.json", "nothing else knows this model"
    assert not (tmp_path / "ran").exists()
