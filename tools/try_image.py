"""Take the steps of the Dockerfile where there is no Docker, and see that what they make serves.

    .venv/bin/python tools/try_image.py cpu      # or cuda: the steps only, unless there is a GPU

Linux, as root. Every stage is an overlay over this machine's own file system, which stands in for the base image:
nothing outside a temporary folder changes. What is not seen this way: the base image itself, and the layers' sizes.
Build arguments come from the environment (TORCH_INDEX_URL); packages from wherever pip finds them here.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template

import pathspec
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
_TRIES = 150  # two seconds apart, until it is healthy


@dataclass
class Stage:
    """A stage so far: what it has beyond the base image, in ``place``, and what instructions have set."""

    place: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"], "HOME": "/root"})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    @property
    def files(self) -> Path:
        """Its file system, as far as it differs from the base image's."""
        return self.place / "files"

    def inside(self, command: list[str]) -> list[str]:
        """A command line that runs ``command`` in this stage."""
        mount, work = self.place / "mount", self.place / "work"
        user, _, group = self.user.partition(":")
        pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        run = ["chroot", f"--userspec={user}:{group}", "--groups=", str(mount)]
        run += [
            "env",
            "-i",
            *(f"{name}={value}" for name, value in {**pip, **self.arguments, **self.environment}.items()),
        ]
        run += ["sh", "-c", f"cd {shlex.quote(self.folder)} && exec {shlex.join(command)}"]
        script = f"""set -e
            mount -t overlay overlay -o lowerdir=/,upperdir={self.files},workdir={work} {mount}
            for place in proc dev sys; do mount --rbind /$place {mount}/$place; done
            mount -t tmpfs tmpfs {mount}/tmp
            chmod 1777 {mount}/tmp
            chmod o+x {" ".join(f"{mount}{folder}" for folder in _way_to_python())}
            exec {shlex.join(run)}"""
        return ["unshare", "--mount", "sh", "-c", script]


def _way_to_python() -> list[Path]:
    """The folders above this machine's Python, which may be in a home that only its owner may enter."""
    return [folder for folder in Path(sys.base_prefix).parents if folder != folder.parent]


class Trial:
    """One go through the stages that ``target`` needs."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._stages: dict[str, Stage] = {}

    def build(self, target: str) -> Stage:
        """The stage ``target``, and before it those that it is made from."""
        steps = _stages()
        if target not in steps:
            sys.exit(f"error: no stage {target}; there are {', '.join(steps)}")
        if target in self._stages:
            return self._stages[target]
        base, instructions = steps[target]
        stage = Stage(self._place / target)
        for name in ("work", "mount"):
            (stage.place / name).mkdir(parents=True)
        if base in steps:
            parent = self.build(base)
            stage = replace(parent, place=stage.place, environment={**parent.environment}, arguments={})
            subprocess.run(["cp", "-a", str(parent.files), str(stage.files)], check=True)
        else:
            stage.files.mkdir()
        for name, value in instructions:
            print(f"[{target}] {name} {' '.join(value.split())[:100]}", flush=True)
            getattr(self, f"_{name.lower()}", self._unknown)(stage, value)
        self._stages[target] = stage
        return stage

    def _unknown(self, stage: Stage, value: str) -> None:
        sys.exit(f"error: this script does not know the instruction before {value[:40]!r}")

    def _expose(self, stage: Stage, value: str) -> None:
        int(value)

    def _volume(self, stage: Stage, value: str) -> None:
        assert all(path.startswith("/") for path in json.loads(value))

    def _arg(self, stage: Stage, value: str) -> None:
        name, _, default = value.partition("=")
        stage.arguments[name] = os.environ.get(name, default)

    def _env(self, stage: Stage, value: str) -> None:
        for pair in shlex.split(value):
            name, _, text = pair.partition("=")
            stage.environment[name] = Template(text).substitute(stage.environment)

    def _workdir(self, stage: Stage, value: str) -> None:
        stage.folder = value
        (stage.files / value.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _user(self, stage: Stage, value: str) -> None:
        stage.user = value

    def _entrypoint(self, stage: Stage, value: str) -> None:
        stage.entry = json.loads(value)

    def _cmd(self, stage: Stage, value: str) -> None:
        stage.command = json.loads(value)

    def _healthcheck(self, stage: Stage, value: str) -> None:
        stage.health = json.loads(value.partition("CMD ")[2])

    def _run(self, stage: Stage, value: str) -> None:
        outcome = subprocess.run(stage.inside(["sh", "-euc", value]), check=False)
        if outcome.returncode:
            sys.exit(f"error: exit code {outcome.returncode}")

    def _copy(self, stage: Stage, value: str) -> None:
        source, *places = shlex.split(value)
        target = stage.files / os.path.join(stage.folder, places[-1]).lstrip("/")
        if source.startswith("--from="):
            path = self.build(source.partition("=")[2]).files / places[0].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-a", str(path), str(target)], check=True)
            return
        for name in (source, *places[:-1]):
            files = [file for file in context() if name == "." or file == name or file.startswith(f"{name}/")]
            if not files:
                sys.exit(f"error: COPY {name}: not in the build's context")
            for file in files:
                into = target / file if name == "." or places[-1].endswith("/") else target
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / file, into)


def _stages() -> dict[str, tuple[str, list[tuple[str, str]]]]:
    """(base, instructions) of every stage."""
    with (ROOT / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    name = ""
    for entry in structure:
        if entry["instruction"] == "FROM":
            base, _, name = entry["value"].split()
            stages[name] = (base, [])
        elif name and entry["instruction"] != "COMMENT":
            stages[name][1].append((entry["instruction"], entry["value"]))
    return stages


def context() -> list[str]:
    """The files that a build gets: those that git knows, without what .dockerignore leaves out."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    # Unlike git, Docker lets a later line bring back what lies in a folder that an earlier one left out.
    ignored = pathspec.PathSpec.from_lines("gitignore", (ROOT / ".dockerignore").read_text().splitlines())
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file() and not ignored.match_file(name)]


def serve(stage: Stage, port: int) -> None:
    """Start the image as it is: it must become healthy, answer, and end well on SIGTERM."""
    stage.environment["LADLE_PORT"] = str(port)
    ask = f"id -u; ladle generate 'The sky is' --max-tokens 8 --seed 1 --url http://127.0.0.1:{port}"
    # One shell for all: an overlay may be mounted only once.
    check = f"""{shlex.join([*stage.entry, *stage.command])} &
        server=$!
        trap 'kill -9 $server' EXIT
        tries={_TRIES}
        until {shlex.join(stage.health)}; do
            kill -0 $server
            tries=$((tries - 1))
            [ $tries -gt 0 ]
            sleep 2
        done
        echo healthy
        {ask}
        kill -TERM $server
        wait $server
        trap - EXIT
        echo it ended well"""
    if subprocess.run(stage.inside(["sh", "-euc", check]), check=False).returncode:
        sys.exit("error: it does not serve")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if sys.platform != "linux" or os.geteuid() != 0:
        sys.exit("error: this needs root on Linux, to mount overlays; elsewhere use docker build")
    with tempfile.TemporaryDirectory(prefix="ladle-image-") as place:
        trial = Trial(Path(place))
        stage = trial.build(sys.argv[1])
        size = sum(file.lstat().st_size for file in stage.files.rglob("*"))
        print(f"{sys.argv[1]}: {size >> 20} MiB over the base image", flush=True)
        if sys.argv[1] == "cpu" or shutil.which("nvidia-smi"):
            serve(stage, int(os.environ.get("PORT", "18473")))


if __name__ == "__main__":
    main()
