"""A sequence classifier, such as a reward model, as a reward."""

from __future__ import annotations

from typing import Any


class Classifier:
    """A transformers sequence classifier as a reward: the logit of one label, on the conversation in the model's chat
    format if it has one, else prompt and response on two lines."""

    def __init__(self, name: str, place: str, label: int = 0, *, hub: bool = False) -> None:
        """Load it.

        Args:
            name: the objective it scores.
            place: a folder, or with ``hub`` also the id of a repository, ``ORG/NAME`` or ``ORG/NAME@REVISION``.
            label: which of its outputs is the reward.
            hub: whether what is no folder may be fetched. Without it a path is a folder on disk, never a name to look
                up elsewhere.

        Raises:
            ValueError: nothing that transformers loads, or a label that it does not have.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from ladle.merging.checkpoints.library_lock import loading

        self.name = name
        self._label = label
        where, _, revision = place.partition("@") if hub else (place, "", "")
        options: dict[str, Any] = {"local_files_only": not hub, "revision": revision or "main"}
        try:
            with loading(f"reading {place}"):
                self._model: Any = AutoModelForSequenceClassification.from_pretrained(
                    where, trust_remote_code=False, **options
                ).eval()
                self._tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False, **options)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"reward: {place!r} is not allowed; allowed: a sequence classifier ({reason})") from None
        labels = int(self._model.config.num_labels)
        if not 0 <= label < labels:
            raise ValueError(f"reward: label {label} is not allowed; allowed: 0 to {labels - 1} of {place!r}")

    def __call__(self, prompt: str, response: str) -> float:
        import torch

        if self._tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
            inputs = self._tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True, truncation=True)
        else:
            inputs = self._tokenizer(f"{prompt}\n{response}", return_tensors="pt", truncation=True)
        with torch.inference_mode():
            return float(self._model(**inputs).logits[0, self._label])
