"""``ladle sweep`` from the command to its files, on a tiny family: figures, seeds, resuming, refusals."""

import csv
import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from guided_folder import write_guided_family
from live_server import served
from seeds import fresh_seed
from typer import Typer
from typer.testing import CliRunner, Result

from ladle.recipes.commands.sweep import command
from ladle.recipes.rewards import Concise, Positive
from ladle.recipes.sweeps.grid import Setting, parse_method, settings_of
from ladle.recipes.sweeps.inputs import read_prompts, rewards_of
from ladle.recipes.sweeps.plots import write_plots
from ladle.recipes.sweeps.store import Sample, SampleStore
from ladle.recipes.sweeps.summary import RewardTable, summarise

OBJECTIVES = ["positive", "concise"]
METHODS = ["bone_soup", "mage:value=both,strength=0.5"]


def run(*arguments: object) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def samples(folder: Path) -> list[dict[str, str]]:
    with (folder / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_from_beginning_to_end_and_on_from_the_middle(tmp_path: Path) -> None:
    rng = random.Random(fresh_seed())
    root = two_objectives(tmp_path / "family", rng.randrange(1000))
    (tmp_path / "prompts.txt").write_text("rain\n\nsnow and ice\nthe sun\n")
    options = ["--prompts", tmp_path / "prompts.txt", "--answers", 2, "--points", 2, "--max-tokens", 12]
    options += ["--draws", 100, "--seed", 5, "-m", "bone_soup", "-m", "mage:value=implicit,strength=0.5"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    with served(root) as (url, _):
        done = run(url, *options, "--out", whole, "--json")
        assert done.exit_code == 0, done.output
        # Stopped in the middle of a line: what is there stays, the rest is asked for, and all comes out the same.
        part.mkdir()
        text = (whole / "samples.csv").read_bytes()
        (part / "samples.csv").write_bytes(text[: rng.randrange(len(text) // 3, len(text) - 20)].rstrip(b"\n"))
        (part / "sweep.json").write_text((whole / "sweep.json").read_text())
        again = run(url, *options, "--out", part, "--json")
        assert again.exit_code == 0, again.output
        other = run(url, *options, "--out", part, "--temperature", 0.5)
        assert other.exit_code == 1 and "sampling" in other.output and "was begun" in other.output
        unable = run(url, *options[:-2], "-m", "co_llm", "--out", tmp_path / "no")
        assert unable.exit_code == 1 and "co_llm" in unable.output
    assert not (tmp_path / "no" / "samples.csv").exists(), "nothing is sampled before everything can be"

    rows = samples(whole)
    assert len(rows) == (1 + 2 * 3) * 3 * 2
    assert {row["setting"] for row in rows} >= {"base", "bone_soup@0.5,0.5", "mage:value=implicit,strength=0.5@1,0"}
    seeds = {(row["prompt"], row["number"]): row["seed"] for row in rows}
    assert len(set(seeds.values())) == 6, "an answer's seed is its own"
    assert all(seeds[row["prompt"], row["number"]] == row["seed"] for row in rows), "and the same in every setting"
    for row in rows:
        assert float(row["reward_positive"]) == Positive()("", row["text"])
        # The first answer to a prompt is judged by the base, unless more are asked for.
        assert float(row["base_logprob"]) < 0 if row["number"] == "0" else row["base_logprob"] == ""
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said == json.loads((whole / "summary.json").read_text())
    assert {"front.png", "front.svg", "sweep.json"} <= {path.name for path in whole.iterdir()}
    merged = json.loads((whole / "sweep.json").read_text())["coefficients"]
    assert merged["bone_soup@0.5,0.5"] == pytest.approx(dict.fromkeys(("bone-positive", "bone-simple"), 0.5))
    assert merged["base"] == {}
    assert json.loads(again.stdout.strip().splitlines()[-1]) == said
    assert sorted(map(str, samples(part))) == sorted(map(str, rows))


def test_a_sweep_of_a_folder_starts_a_server_of_its_own(tmp_path: Path) -> None:
    root = two_objectives(tmp_path / "family", fresh_seed() % 1000)
    (tmp_path / "prompts.txt").write_text("rain\nsnow\n")
    options = ["--prompts", tmp_path / "prompts.txt", "--answers", 1, "--points", 1, "--max-tokens", 4, "--draws", 100]
    done = run(root, *options, "--out", tmp_path / "sweep")
    assert done.exit_code == 0, done.output
    assert len(samples(tmp_path / "sweep")) == 6 and (tmp_path / "sweep" / "server.log").exists()


def two_objectives(folder: Path, seed: int) -> Path:
    """A family with values whose objectives are those that built-in rewards score."""
    root = write_guided_family(folder, seed=seed)
    manifest = root / "family.toml"
    manifest.write_text(manifest.read_text().replace('"simple"', '"concise"'))
    return root


def test_what_cannot_be_swept_is_said_at_once(tmp_path: Path) -> None:
    for arguments, words in (
        (["-m", "bone_soup:x"], "KEY=VALUE"),
        (["-m", "mage", "-m", "mage"], "twice"),
        (["-r", "smart=folder"], "OBJECTIVE=FOLDER"),
        (["--prompts", tmp_path / "none.txt"], "none.txt"),
        (["--split", "nope"], "split"),
    ):
        said = run("http://127.0.0.1:9", *arguments, "--out", tmp_path / "out")
        assert said.exit_code == 1 and "Traceback" not in said.output
        assert words in said.output or "cannot reach" in said.output


def test_methods_are_written_as_steering() -> None:
    assert parse_method("bone_soup") == {"method": "bone_soup"}
    assert parse_method("mage:value=both,candidates=10,trace=false") == {
        "method": "mage", "value": "both", "candidates": 10, "trace": False,
    }  # fmt: skip
    both = 'mage:strength={"implicit": 0.5, "explicit": 1},value=both, candidates = 10'
    assert parse_method(both) == {
        "method": "mage", "strength": {"implicit": 0.5, "explicit": 1}, "value": "both", "candidates": 10,
    }  # fmt: skip
    nested = {"source": {"bone-positive": 0.6, "bone-concise": 0.4}, "weight": 1.5}
    assert parse_method(f"custom:terms={json.dumps([nested])}") == {"method": "custom", "terms": [nested]}
    for text in ("", ":a=1", "mage:", "mage:value", "mage:value=", "mage:value=both,", "mage:value=both,,a=1", "a:=1"):
        with pytest.raises(ValueError, match="is not allowed; allowed"):
            parse_method(text)
    # What is no JSON is a string: the server says what it thinks of it.
    assert parse_method("mage:strength={0.5,value=both") == {"method": "mage", "strength": "{0.5,value=both"}
    settings = settings_of(["base", "mod"], [(1.0, 0.0), (0.25, 0.75)])
    assert [setting.key for setting in settings] == ["base", "mod@1,0", "mod@0.25,0.75"]
    assert settings[2].request(OBJECTIVES) == {"method": "mod", "preference": {"positive": 0.25, "concise": 0.75}}


def made_up(rng: np.random.Generator, settings: list[Setting], prompts: int, answers: int) -> dict:
    found = {}
    for place, setting in enumerate(settings):
        for prompt in range(prompts):
            for number in range(answers):
                pull = np.array(setting.weights or (0.0,) * len(OBJECTIVES)) * place
                values = rng.normal(size=len(OBJECTIVES)) + pull
                sample = Sample(
                    setting.key, prompt, number, 7, "a b c", 4, "stop", -8.0, dict(zip(OBJECTIVES, values, strict=True))
                )
                found[sample.key] = sample
    return found


def test_figures_are_of_the_bases_deviations(tmp_path: Path) -> None:
    rng = np.random.default_rng(fresh_seed())
    settings = settings_of(METHODS, [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)])
    found = made_up(rng, settings, 12, 3)
    summary = summarise(RewardTable(settings, found, OBJECTIVES), draws=100, seed=1)
    own = np.array([[s.rewards[name] for name in OBJECTIVES] for s in found.values() if s.setting == "base"])
    for row, setting in zip(summary["settings"], settings, strict=True):
        values = np.array([[s.rewards[n] for n in OBJECTIVES] for s in found.values() if s.setting == setting.key])
        z = (values.mean(axis=0) - own.mean(axis=0)) / own.std(axis=0)
        for place, name in enumerate(OBJECTIVES):
            assert row[name]["mean"] == pytest.approx(values[:, place].mean())
            assert row[name]["low"] <= row[name]["mean"] <= row[name]["high"]
            assert row[name]["z"] == pytest.approx(z[place])
        assert row["base_perplexity"] == pytest.approx(np.exp(2)) and row["distinct_1"] == 3 / (3 * 36)
    assert set(summary["methods"]) == set(METHODS)
    (difference,) = summary["differences"]
    gap = [summary["methods"][method]["hypervolume"]["value"] for method in (METHODS[1], METHODS[0])]
    assert difference["hypervolume"]["value"] == pytest.approx(gap[0] - gap[1])
    # Three words are no answer, whatever their rewards.
    assert all(row["degenerate"] == 1.0 for row in summary["settings"])
    assert [measures["hypervolume_sound"]["value"] for measures in summary["methods"].values()] == [0.0, 0.0]
    assert difference["minus"] == METHODS[0] and 0.01 <= difference["hypervolume"]["p"] <= 2
    assert sorted(path.name for path in write_plots(summary, tmp_path)) == ["front.png", "front.svg"]
    # A method that is not there yet is left out, and what is there gives what it gave.
    some = {key: sample for key, sample in found.items() if not key[0].startswith("mage")}
    assert (
        summarise(RewardTable(settings, some, OBJECTIVES), 100, 1)["methods"]["bone_soup"]
        == summary["methods"]["bone_soup"]
    )
    with pytest.raises(ValueError, match="base's own answers"):
        RewardTable(settings, {key: sample for key, sample in found.items() if key[0] != "base"}, OBJECTIVES)


def test_three_objectives_have_a_simplex(tmp_path: Path) -> None:
    rng = np.random.default_rng(fresh_seed())
    names = ["positive", "simple", "concise"]
    settings = settings_of(["bone_soup"], [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.5, 0.25, 0.25)])
    found = {}
    for setting in settings:
        for prompt in range(4):
            rewards = dict(zip(names, rng.normal(size=3), strict=True))
            sample = Sample(setting.key, prompt, 0, 1, "a", 1, "stop", None, rewards)
            found[sample.key] = sample
    summary = summarise(RewardTable(settings, found, names), 100, 1)
    assert summary["settings"][0]["base_perplexity"] is None
    assert summary["settings"][0]["distinct_2"] is None, "texts of one word have no pairs"
    json.dumps(summary, allow_nan=False)
    assert {path.suffix for path in write_plots(summary, tmp_path)} == {".png", ".svg"}
    assert (tmp_path / "simplex.png").stat().st_size > 10_000


def test_a_store_keeps_what_it_was_told(tmp_path: Path) -> None:
    sample = Sample(
        "base", 0, 1, 7, 'several\r\nlines\r, "quoted"\n\x1c', 9, "length", -3.25, {"positive": 0.1, "concise": -2.0}
    )
    SampleStore(tmp_path, {"seed": 1}, OBJECTIVES).add(sample)
    again = SampleStore(tmp_path, {"seed": 1}, OBJECTIVES)
    assert list(again.samples.values()) == [sample]
    with pytest.raises(ValueError, match="seed: 2 is not allowed"):
        SampleStore(tmp_path, {"seed": 2}, OBJECTIVES)


def test_rewards_are_the_built_in_ones_or_classifiers(tmp_path: Path) -> None:
    counted = rewards_of(OBJECTIVES, [], lambda text: 18)
    assert [reward.name for reward in counted] == OBJECTIVES and isinstance(counted[1], Concise)
    assert counted[1]("", "Done.") == 0.0
    with pytest.raises(ValueError, match="'witty' is not allowed"):
        rewards_of(["witty"], [], len)
    with pytest.raises(ValueError, match="sequence classifier"):
        rewards_of(["witty"], [f"witty={tmp_path}"], len)


def test_prompts_of_a_list_and_of_lines(tmp_path: Path) -> None:
    assert read_prompts("everyday", "test")
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(ValueError, match="prompts in it"):
        read_prompts(str(tmp_path / "empty.txt"), "test")


def test_wherever_it_was_stopped_what_was_whole_is_kept(tmp_path: Path) -> None:
    """At every byte: rows that were there are as they were, and none of another text."""
    facts: dict[str, object] = {}
    texts = ['one "quoted" text', "two\nlines, é and 雨\n", "the end\n"]
    store = SampleStore(tmp_path / "whole", facts, OBJECTIVES)
    file, ends = tmp_path / "whole" / "samples.csv", []
    for number, text in enumerate(texts):
        store.add(Sample("base", 0, number, 7, text, 4, "stop", -8.0, dict.fromkeys(OBJECTIVES, 0.5)))
        ends.append(file.stat().st_size)
    whole = file.read_bytes()
    for cut in range(len(whole) + 1):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "samples.csv").write_bytes(whole[:cut])
        kept = SampleStore(folder, facts, OBJECTIVES).samples
        assert [sample.text for sample in kept.values()] == texts[: sum(cut >= end for end in ends)], cut


def test_samples_that_were_compressed_are_read_and_go_on(tmp_path: Path) -> None:
    facts: dict[str, object] = {}
    texts = ['one "quoted" text', "two\nlines, é and 雨\n"]
    store = SampleStore(tmp_path, facts, OBJECTIVES)
    for number, text in enumerate(texts):
        store.add(Sample("base", 0, number, 7, text, 4, "stop", -8.0, dict.fromkeys(OBJECTIVES, 0.5)))
    plain = tmp_path / "samples.csv"
    (tmp_path / "samples.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    again = SampleStore(tmp_path, facts, OBJECTIVES)
    assert again.samples == store.samples and not plain.exists(), "reading leaves the file as it is"
    again.add(Sample("base", 0, 2, 7, "three", 4, "stop", -8.0, dict.fromkeys(OBJECTIVES, 0.5)))
    assert len(SampleStore(tmp_path, facts, OBJECTIVES).samples) == 3
    assert not (tmp_path / "samples.csv.gz").exists(), "the samples stand in one file"
