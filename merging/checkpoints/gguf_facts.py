"""What a GGUF says beside its weights and transformers' conversion leaves out: scaled positions, and ends of turns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ladle.merging.exceptions import FamilyError

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|end_of_turn|>", "<|return|>")
"""How chat templates end a turn, for files that name the token nowhere else."""
_CONTROL = 3  # gguf.TokenType.CONTROL


class GGUFFacts:
    """The metadata of one GGUF file."""

    def __init__(self, file: Path) -> None:
        """Raises whatever the gguf library raises for a file that it cannot read."""
        import gguf

        self._file = file
        self._reader = gguf.GGUFReader(str(file))
        self._architecture = str(self._get("general.architecture"))

    def _get(self, key: str) -> Any:
        field = self._reader.fields.get(key)
        return None if field is None else field.contents()

    def _rope(self, key: str) -> Any:
        return self._get(f"{self._architecture}.rope.{key}")

    def _factors(self, name: str) -> list[float] | None:
        for tensor in self._reader.tensors:
            if tensor.name == f"{name}.weight":
                return [float(value) for value in tensor.data.astype("float64").ravel()]
        return None

    def rope_parameters(self, longest: int) -> dict[str, Any]:
        """What transformers' ``rope_parameters`` need besides the base frequency; empty where nothing is scaled.

        Args:
            longest: the context that the file says the model has.

        Raises:
            FamilyError: a scaling that cannot be carried over.
        """
        kind, factor = self._rope("scaling.type"), self._rope("scaling.factor") or self._rope("scale_linear")
        original = int(self._rope("scaling.original_context_length") or longest)
        frequencies = self._factors("rope_freqs")
        long, short = self._factors("rope_factors_long"), self._factors("rope_factors_short")
        if long is not None and short is not None:
            scaled: dict[str, Any] = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
            attention = self._rope("scaling.attn_factor")
            if attention is not None:
                scaled["attention_factor"] = float(attention)
            return {**scaled, "factor": longest / original, "original_max_position_embeddings": original}
        if kind == "yarn":
            return self._yarn(float(factor or 1.0), original)
        if kind not in (None, "none", "linear", "longrope"):
            raise FamilyError(self._file, f"{self._architecture}.rope.scaling.type: {kind!r} cannot be carried over")
        # Llama 3's scaling comes as a table of divisors and not as parameters.
        if frequencies is not None and any(value != 1.0 for value in frequencies):
            # A divisor for every frequency: what transformers has lists of in longrope, here the same for any length.
            scaled = {"rope_type": "longrope", "long_factor": frequencies, "short_factor": frequencies}
            return {**scaled, "attention_factor": 1.0, "factor": 1.0, "original_max_position_embeddings": longest}
        if kind in (None, "linear") and factor is not None and float(factor) not in (0.0, 1.0):
            return {"rope_type": "linear", "factor": float(factor)}
        return {}

    def _yarn(self, factor: float, original: int) -> dict[str, Any]:
        strange = [key for key in ("yarn_ext_factor", "yarn_log_multiplier") if self._rope(f"scaling.{key}")]
        if [key for key in strange if float(self._rope(f"scaling.{key}")) not in (-1.0, 1.0)]:
            raise FamilyError(self._file, f"{self._architecture}.rope.scaling.{strange[0]} cannot be carried over")
        scaled: dict[str, Any] = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        attention = self._rope("scaling.yarn_attn_factor") or self._rope("scaling.attn_factor")
        if attention is not None and float(attention) != 1.0:
            # llama.cpp multiplies by it what transformers takes where nothing is given.
            scaled["attention_factor"] = float(attention) * (0.1 * math.log(factor) + 1.0)
        for key, name in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if self._rope(f"scaling.{key}") is not None:
                scaled[name] = float(self._rope(f"scaling.{key}"))
        return scaled

    def special(self, name: str) -> int | None:
        """The id of the token that is ``name`` (bos, eos, padding) in the file."""
        value = self._get(f"tokenizer.ggml.{name}_token_id")
        return None if value is None else int(value)

    def ends(self) -> list[int]:
        """Every id that ends a text or a turn, the end of text first."""
        ids = [self.special(name) for name in ("eos", "eot", "eom")]
        template = str(self._get("tokenizer.chat_template") or "")
        wanted = {text for text in _TURN_ENDS if text in template}
        if wanted:
            tokens, kinds = self._get("tokenizer.ggml.tokens") or [], self._get("tokenizer.ggml.token_type") or []
            pairs = enumerate(zip(tokens, kinds, strict=False))
            ids += [index for index, (text, kind) in pairs if kind == _CONTROL and text in wanted]
        return list(dict.fromkeys(index for index in ids if index is not None))
