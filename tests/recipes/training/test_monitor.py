"""Values that watch: labels of texts, bounds against brute force, and a family that is served with what was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import load_family
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.commands import monitor as monitor_command
from ladle.recipes.training.monitor import (
    Labelled,
    monitor_loss,
    probabilities,
    read_texts,
    split,
    watching,
)


def _write(file: Path, rows: list[object]) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file


def test_labels_reach_the_tokens_that_they_are_of(base: LoadedBase, tmp_path: Path) -> None:
    answer = "all is well and bad words end it"
    rows = [
        {"prompt": "a", "answer": answer, "bad": [[16, 25]]},
        {"prompt": "a", "answer": answer, "label": True},
        {"prompt": "b", "answer": "fine", "label": 0},
        {"prompt": "b", "answer": "fine", "bad": []},
    ]
    spans, whole, good, clean = read_texts(_write(tmp_path / "texts.jsonl", rows), base)
    marked = [token for token, target in zip(spans.answer, spans.targets, strict=True) if target]
    assert "bad words".startswith(base.tokenizer.decode(marked).strip()[:9]) and spans.bad
    assert base.tokenizer.decode(marked).strip() == "bad words"
    assert whole.targets == (1.0,) * len(whole.answer) and whole.answer[-1] == base.eos
    assert not good.bad and not clean.bad and set(good.targets + clean.targets) == {0.0}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("{", "an object"),
        ([1], "an object"),
        ({"prompt": "a", "label": 1}, "an object"),
        ({"prompt": "a", "answer": " ", "label": 1}, "not empty"),
        ({"prompt": "a", "answer": "b"}, "one of them"),
        ({"prompt": "a", "answer": "b", "label": 1, "bad": []}, "one of them"),
        ({"prompt": "a", "answer": "b", "label": 2}, "0 or 1"),
        ({"prompt": "a", "answer": "b", "bad": [[0, 2]]}, "within the answer's 1 characters"),
        ({"prompt": "a", "answer": "b", "bad": [[0.0, 1]]}, "within the answer's 1 characters"),
    ],
)
def test_what_is_no_text_with_a_label_is_refused(base: LoadedBase, tmp_path: Path, row: object, words: str) -> None:
    good = {"prompt": "a", "answer": "b", "label": 0}
    with pytest.raises(InputError, match=words) as caught:
        read_texts(_write(tmp_path / "texts.jsonl", [good, row]), base)
    assert "texts.jsonl:2" in str(caught.value)


def test_texts_of_one_kind_teach_nothing(base: LoadedBase, tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": str(i), "answer": "b", "label": 1} for i in range(9)]
    with pytest.raises(InputError, match="bad and from good"):
        read_texts(_write(tmp_path / "texts.jsonl", rows), base)
    texts = [Labelled(str(i), (5,), (float(i == 0),), i == 0) for i in range(9)]
    with pytest.raises(InputError, match="one prompt in five"):
        split(texts, 0)


def test_the_loss_is_the_mean_over_tokens(random: np.random.Generator) -> None:
    lengths = [int(n) for n in random.integers(1, 7, size=4)]
    values = torch.tensor(random.normal(size=(4, max(lengths))))
    targets = [[float(t) for t in random.integers(0, 2, size=n)] for n in lengths]
    chances = [
        p if target else 1 - p
        for row, own in enumerate(targets)
        for p, target in zip((1 / (1 + np.exp(-values[row].numpy()))).tolist(), own, strict=False)
    ]
    assert float(monitor_loss(values, targets)) == pytest.approx(-np.log(chances).mean(), rel=1e-6)


def test_the_bound_is_the_lowest_that_ends_few_enough_good_answers(random: np.random.Generator) -> None:
    said = [random.random(int(n)) for n in random.integers(1, 20, size=60)]
    bad = [bool(b) for b in random.integers(0, 2, size=60)]
    run = int(random.integers(1, 4))

    def ends(own: np.ndarray, above: float) -> int | None:
        for count in range(run, len(own) + 1):
            if (own[count - run : count] > above).all():
                return count
        return None

    found = watching(said, bad, run, 0.1)
    good = [own for own, wrong in zip(said, bad, strict=True) if not wrong]
    wrongs = [own for own, wrong in zip(said, bad, strict=True) if wrong]
    assert found.false_stops == pytest.approx(np.mean([ends(own, found.above) is not None for own in good]))
    assert found.false_stops <= 0.1
    lower = np.mean([ends(own, found.above - 1e-9) is not None for own in good])
    assert lower > 0.1 or found.above == 0.0
    ended = [(ends(own, found.above), len(own)) for own in wrongs]
    assert found.stops == pytest.approx(np.mean([count is not None for count, _ in ended]))
    parts = [count / length for count, length in ended if count is not None]
    assert found.after == pytest.approx(np.median(parts)) if parts else np.isnan(found.after)


def test_a_trained_monitor_watches_the_family_that_it_was_written_into(
    root: Path, tmp_path: Path, random: np.random.Generator
) -> None:
    words = ["sun", "rain", "wind", "snow"]
    rows: list[object] = []
    for index in range(30):
        bad = index % 2 == 1
        said = [str(random.choice(words)) for _ in range(3)] + (["zzz"] if bad else ["well"])
        rows.append({"prompt": f"tell {index // 2}", "answer": " ".join(said), "label": int(bad)})
    file = _write(tmp_path / "texts.jsonl", rows)
    app = typer.Typer()
    app.command()(monitor_command.command)
    options = ["--for", "1", "--epochs", "12", "--learning-rate", "0.01", "--rank", "2", "--hold", "4"]
    result = CliRunner().invoke(app, [str(root), str(file), "--name", "zed", *options])
    assert result.exit_code == 0, (result.output, result.exception)
    family = load_family(root)
    (value,) = [value for value in family.values if value.kind == "monitor"]
    (entry,) = family.manifest.monitors
    assert (value.name, entry.name, entry.value, entry.run, entry.hold) == ("zed", "zed", "zed", 1, 4)
    assert "zed" not in family.mergeable
    (monitor,) = resolve(family, Steering.parse({"method": "base"})).monitors
    assert monitor.probability and monitor.above == entry.above and 0 <= entry.above < 1
    # It has learned what the labels say: bad answers are ended at the word that makes them bad.
    texts = read_texts(file, _base(root))
    said = probabilities(_base(root), root / "adapters" / "zed", texts)
    assert watching(said, [text.bad for text in texts], 1, 0.1).auc > 0.95
    again = CliRunner().invoke(app, [str(root), str(file), "--name", "zed"])
    assert again.exit_code == 1 and "there is a member or a folder of this name" in again.output


def _base(root: Path) -> LoadedBase:
    from ladle.recipes.base_model import load_base

    return load_base(str(root / "base"))
