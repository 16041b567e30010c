"""``ladle serve --ray`` where Ray is not installed."""

import sys
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from ladle.server.commands.serve import command
from ladle.server.settings import ServerSettings

app = typer.Typer()
app.command()(command)


def test_without_ray_it_says_what_to_install(family_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = CliRunner().invoke(app, [str(family_folder), "--ray", "--replicas", "2", "--port", "0"])
    assert result.exit_code == 1 and "error: --ray needs Ray: pip install 'ladle[ray]'" in result.stderr


def test_fewer_than_there_are_at_least() -> None:
    assert ServerSettings(ray=True, replicas=2, max_replicas=2).max_replicas == 2
    with pytest.raises(ValidationError, match="max_replicas"):
        ServerSettings(ray=True, replicas=3, max_replicas=2)
