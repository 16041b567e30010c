"""Which room may import what, read from the source of every module, imports inside functions included."""

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from imports_of import ROOT, imports

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("kernels", "merging", "guidance", "server/engine", "server", "clients", "recipes", "benchmarks", "families")

# The arrows of the design, between rooms. `ladle` itself (its version) may be imported by all.
ARROWS: dict[str, set[str]] = {
    "kernels": set(),
    "merging": {"kernels"},
    "guidance": {"merging", "kernels"},
    "server/engine": {"guidance", "merging", "kernels"},
    "server": {"server/engine", "guidance", "merging"},
    "clients": set(),
    "recipes": {"merging", "guidance", "server/engine", "clients"},
    "benchmarks": set(ROOMS),
    "families": set(),
}
# Rooms that must get by with these packages of others. The others may use what their extra installs.
ONLY: dict[str, set[str]] = {
    "kernels": {"torch", "triton", "numba", "llvmlite", "numpy", "filelock"},
    "clients": {"httpx", "pydantic"},
    "families": set(),
}
# The command line is the part of the SDK that needs the extra [cli].
COMMAND_LINE = {"sdk_commands.py", "cli.py", "chat_session.py", "display.py", "lazy_commands.py", "painter.py"}
WEB = {"fastapi", "starlette", "uvicorn", "httpx", "prometheus_client", "pydantic_settings", "typer", "rich"}


def modules(room: str) -> list[Path]:
    inside = [other for other in ROOMS if other.startswith(room + "/")]
    return [
        path
        for path in sorted((ROOT / room).rglob("*.py"))
        if not any(path.is_relative_to(ROOT / other) for other in inside)
    ]


def room_of(module: str) -> str | None:
    """The room of an import such as ``ladle.server.engine.requests.request``; None for ``ladle`` itself."""
    parts = module.split(".")[1:]
    if not parts or parts[0] not in ROOMS:
        return None
    return "server/engine" if parts[:2] == ["server", "engine"] else parts[0]


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {room} must not import {module}"
        for path in modules(room)
        for line, module in imports(path)
        if module.partition(".")[0] == "ladle"
        and (target := room_of(module)) not in (None, room)
        and target not in ARROWS[room]
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", sorted(ONLY))
def test_packages_of_light_rooms(room):
    wrong = []
    for path in modules(room):
        allowed = (
            ONLY[room] | {"ladle"} | ({"typer", "rich"} if room == "clients" and path.name in COMMAND_LINE else set())
        )
        for line, module in imports(path):
            name = module.partition(".")[0]
            if name not in allowed and name not in sys.stdlib_module_names:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} must not import {name}")
    assert not wrong, "\n".join(wrong)


def test_the_sdk_proper_never_imports_the_command_line():
    for path in modules("clients"):
        if path.name not in COMMAND_LINE:
            targets = {module for _, module in imports(path)}
            assert not targets & {f"ladle.clients.{name.removesuffix('.py')}" for name in COMMAND_LINE}, path


@pytest.mark.parametrize("room", ["kernels", "merging", "guidance", "server/engine"])
def test_nothing_of_the_web_below_the_server(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in modules(room)
        for line, module in imports(path)
        if module.partition(".")[0] in WEB
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_unpickled(room):
    """Weights come as safetensors: a pickle runs whatever its author liked."""
    wrong = []
    for path in modules(room):
        where = path.relative_to(ROOT)
        for line, module in imports(path):
            if module.partition(".")[0] in ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"):
                wrong.append(f"{where}:{line}: imports {module}")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
                wrong.append(f"{where}:{node.lineno}: {ast.unparse(node.func)}")
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                literal = node.value
                if not (isinstance(literal, ast.Constant) and literal.value is False):
                    wrong.append(f"{where}:{node.lineno}: {node.arg}={ast.unparse(literal)}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("room", ["merging", "guidance", "server/engine", "server"])
def test_nobody_is_asked_whether_code_of_a_checkpoint_may_run(room):
    """transformers asks on the terminal unless it is told not to."""
    wrong = []
    for path in modules(room):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and re.fullmatch(r"Auto\w+\.from_pretrained", ast.unparse(node.func))
                and not any(keyword.arg == "trust_remote_code" for keyword in node.keywords)
            ):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    assert not wrong, "\n".join(wrong)


def test_the_scan_sees_what_it_should(tmp_path):
    """The checks above would pass on nothing at all; this one would not."""
    path = tmp_path / "module.py"
    path.write_text(
        "from ladle.server import engine\nfrom ladle import merging\ndef f():\n    import ladle.guidance.plan\n"
    )
    found = {room_of(module) for _, module in imports(path)}
    assert found == {"server", "server/engine", "merging", "guidance", None}
    assert all(len(modules(room)) >= 1 for room in ROOMS)
    assert ROOT / "server/engine/engine.py" in modules("server/engine")
    assert ROOT / "server/engine/engine.py" not in modules("server")


def test_the_sdk_imports_without_the_rest():
    blocked = [
        "torch",
        "numpy",
        "transformers",
        "safetensors",
        "fastapi",
        "starlette",
        "uvicorn",
        "typer",
        "rich",
        "jinja2",
    ]
    source = (
        f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport ladle.clients as c\nc.Client().close()"
    )
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_core_needs_what_the_sdk_imports_and_no_more():
    names = {requirement.partition(">")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == ONLY["clients"]


def test_every_folder_with_modules_is_packaged():
    """A folder that pyproject.toml does not list works from a checkout and is missing from the wheel."""
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    # The families are a distribution of their own.
    folders = {path.parent.relative_to(ROOT) for room in ROOMS if room != "families" for path in modules(room)}
    needed = {"ladle." + ".".join(folder.parts) for folder in folders}
    assert needed <= listed, needed - listed


def test_every_entry_point_leads_somewhere():
    from ladle.clients.lazy_commands import GROUP

    for name, target in PROJECT["project"]["entry-points"][GROUP].items():
        module, _, attribute = target.partition(":")
        path = ROOT / Path(*module.split(".")[1:]).with_suffix(".py")
        assert path.is_file(), f"{name}: {path.relative_to(ROOT)} does not exist"
        tree = ast.parse(path.read_text())
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        defined |= {
            ast.unparse(target) for node in tree.body if isinstance(node, ast.Assign) for target in node.targets
        }
        assert attribute in defined, f"{name}: {path.relative_to(ROOT)} defines no {attribute}"


@pytest.mark.parametrize("name", ["kernels", "guidance", "server", "clients"])
def test_rooms_are_importable_only_as_parts_of_ladle(name):
    """transformers imports a package called kernels where it finds one: it must never find ours."""
    spec = importlib.util.find_spec(name)
    places = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or [])]
    inside = [place for place in places if place and Path(place).is_relative_to(ROOT)]
    assert not inside, (
        f"{inside}: run pytest as .venv/bin/pytest, not as `python -m pytest`, from the repository's root"
    )
