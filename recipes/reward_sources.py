"""Where a recipe's rewards come from: functions of one's own, sequence classifiers, the built-in ones."""

from __future__ import annotations

import importlib
import inspect
import math
import re
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ladle.recipes.classifier import Classifier
from ladle.recipes.rewards import BUILT_IN, Reward, make_reward

ALLOWED = "FILE.py:FUNCTION, MODULE:FUNCTION, a folder or hub id of a sequence classifier, " + ", ".join(BUILT_IN)
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_HUB = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


class _NotFound(ValueError):
    """There is no such module."""


def reward_of(
    name: str,
    spec: str | None,
    folder: Path,
    count_tokens: Callable[[str], int],
    concise_target: int = 18,
    columns: Mapping[str, Mapping[str, object]] | None = None,
) -> Reward:
    """The reward of an objective.

    Args:
        name: the objective.
        spec: what ``[rewards]`` says: ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION`` (either is run, as any program of
            one's own), a folder or an id of the hub with a sequence classifier, ``#LABEL`` behind it, or the name of a
            built-in reward. None: the built-in one of the objective's name.
        folder: what relative paths are relative to, and where modules are found first.
        count_tokens: the base's, for the built-in ``concise``.
        concise_target: of that one.
        columns: what else the data set says of a prompt, by its text, for functions that ask for it.

    Raises:
        ValueError: no such reward.
    """
    if spec is None or spec in BUILT_IN:
        reward = make_reward(spec or name, count_tokens, concise_target)
        return reward if spec in (None, name) else _Renamed(name, reward)
    place, hash_mark, label = spec.partition("#")
    path = folder / Path(place).expanduser()
    if path.is_dir() or (":" not in spec and _HUB.fullmatch(place)):
        if hash_mark and not label.isdigit():
            raise ValueError(f"rewards.{name}: {spec!r} is not allowed; allowed: the number of a label behind the #")
        try:
            return Classifier(name, str(path if path.is_dir() else place), int(label or 0), hub=not path.is_dir())
        except ValueError as error:
            raise ValueError(f"rewards.{name}: {error}") from None
    return _Own(name, _function(name, spec, folder), columns or {})


def _function(name: str, spec: str, folder: Path) -> Callable[..., Any]:
    module, _, function = spec.rpartition(":")
    path = folder / Path(module).expanduser()
    if module.endswith(".py"):
        if not path.is_file():
            raise ValueError(f"rewards.{name}: there is no file {str(path)!r}; allowed: {ALLOWED}")
        reward = _run(name, str(path), lambda: runpy.run_path(str(path))).get(function)
    elif _MODULE.fullmatch(module):
        reward = getattr(_run(name, module, lambda: _import(name, module, folder)), function, None)
    else:
        raise ValueError(f"rewards.{name}: {spec!r} is not allowed; allowed: {ALLOWED}")
    if not callable(reward):
        raise ValueError(f"rewards.{name}: {module} has no function {function!r}")
    return reward


def _run(name: str, what: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except _NotFound:
        raise
    except Exception as error:
        raise ValueError(f"rewards.{name}: {what} cannot be run: {type(error).__name__}: {error}") from error


def _import(name: str, module: str, folder: Path) -> Any:
    """The module, looked for beside the recipe first."""
    sys.path.insert(0, str(folder.resolve()))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing != module and not module.startswith(f"{missing}."):
            raise
        where = f"beside the recipe ({folder.resolve()}) or installed"
        raise _NotFound(f"rewards.{name}: there is no module {missing!r}; allowed: one that is {where}") from None
    finally:
        sys.path.remove(str(folder.resolve()))


class _Renamed:
    """A built-in reward that an objective of another name stands for."""

    def __init__(self, name: str, reward: Reward) -> None:
        self.name = name
        self._reward = reward

    def __call__(self, prompt: str, response: str) -> float:
        return self._reward(prompt, response)


class _Own:
    """A function of one's own: ``function(prompt, response) -> float``, or as TRL has them, ``function(prompts,
    completions, **columns) -> list of floats`` over messages. Higher is better."""

    def __init__(self, name: str, function: Callable[..., Any], columns: Mapping[str, Mapping[str, object]]) -> None:
        self.name = name
        self._function = function
        self._columns = columns
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):  # some functions written in C do not tell
            parameters = {}  # type: ignore[assignment]
        self._batched = "completions" in parameters
        anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
        self._takes = None if anything else frozenset(parameters)

    def __call__(self, prompt: str, response: str) -> float:
        return self.many([prompt], [response])[0]

    def many(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """The reward of each response.

        Raises:
            ValueError: the function failed, gave another number of rewards, or one that is not a finite number.
        """
        if not self._batched:
            pairs = zip(prompts, responses, strict=True)
            return [self._number(self._called(response, prompt, response), response) for prompt, response in pairs]
        given = self._called(responses[0], **self._arguments(prompts, responses))
        try:
            rewards = list(given)
        except TypeError:
            kind = type(given).__name__
            raise ValueError(f"rewards.{self.name}: the function gave {kind}, not a list of numbers") from None
        if len(rewards) != len(responses):
            raise ValueError(
                f"rewards.{self.name}: the function gave {len(rewards)} rewards for {len(responses)} answers; "
                "allowed: one for each"
            )
        return [self._number(score, response) for score, response in zip(rewards, responses, strict=True)]

    def _arguments(self, prompts: Sequence[str], responses: Sequence[str]) -> dict[str, Any]:
        """The arguments with which TRL's trainers call a reward: conversations, and a list per column of the data."""
        known = [self._columns.get(prompt, {}) for prompt in prompts]
        names = sorted(set.union(set(), *known)) if known else []
        arguments = {
            "prompts": [[{"role": "user", "content": prompt}] for prompt in prompts],
            "completions": [[{"role": "assistant", "content": response}] for response in responses],
            **{name: [columns.get(name) for columns in known] for name in names},
        }
        return {key: value for key, value in arguments.items() if self._takes is None or key in self._takes}

    def _called(self, response: str, *arguments: Any, **named: Any) -> Any:
        """What the function gives; ``response`` is named where it fails."""
        try:
            return self._function(*arguments, **named)
        except Exception as error:
            failed = f"the function failed with {type(error).__name__}: {error}"
            raise ValueError(f"rewards.{self.name}: {failed}; for the response {response[:80]!r}") from error

    def _number(self, score: Any, response: str) -> float:
        try:
            number = float(score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            shown = repr(score)[:40]
            raise ValueError(
                f"rewards.{self.name}: {shown} is not allowed; allowed: a finite number (for the response "
                f"{response[:80]!r})"
            )
        return number
