"""What the package shows: its names, and examples that run."""

import doctest
import importlib
import inspect
import pkgutil
import typing

import httpx
import pytest
from mock_server import MockServer

import ladle.clients
from ladle.clients import AsyncClient, Client

NEED_AN_EXAMPLE = [
    (kind, name)
    for kind in (Client, AsyncClient)
    for name, member in vars(kind).items()
    if inspect.isfunction(member) and not name.startswith("_") and name not in ("close", "aclose")
]


def test_exported_members():
    """Everything public that the modules of the SDK define for users is exported, and nothing else."""
    exported = set(ladle.clients.__all__)
    assert all(hasattr(ladle.clients, name) for name in exported)
    assert len(exported) == len(ladle.clients.__all__)
    public: set[str] = set()
    for module in ("client", "async_client", "stream", "errors", "responses", "family_responses"):
        names = vars(importlib.import_module(f"ladle.clients.{module}")).items()
        public |= {
            name
            for name, member in names
            if not name.startswith("_")
            and inspect.isclass(member)
            and member.__module__ == f"ladle.clients.{module}"
            and name != "Response"
        }
    assert exported == public | {"Message", "Options"}


@pytest.mark.parametrize(("kind", "name"), NEED_AN_EXAMPLE, ids=lambda value: getattr(value, "__name__", value))
def test_every_public_method_has_an_example(kind, name):
    assert ">>>" in (inspect.getdoc(getattr(kind, name)) or "")


def modules() -> list[str]:
    names = [info.name for info in pkgutil.iter_modules(ladle.clients.__path__, "ladle.clients.")]
    return [name for name in names if not name.startswith("ladle.clients.cli")]


@pytest.mark.parametrize("module", modules())
def test_examples_run(module, monkeypatch):
    real = {"Client": httpx.Client, "AsyncClient": httpx.AsyncClient}
    for name, kind in real.items():
        monkeypatch.setattr(
            httpx, name, lambda kind=kind, **options: kind(**options | {"transport": MockServer().transport})
        )
    outcome = doctest.testmod(importlib.import_module(module), optionflags=doctest.REPORT_NDIFF)
    assert outcome.failed == 0


def test_type_hints_resolve():
    for name in ladle.clients.__all__:
        member = getattr(ladle.clients, name)
        if inspect.isclass(member):
            typing.get_type_hints(member)
