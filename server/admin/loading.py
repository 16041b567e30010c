"""Families from disk into engines, and the names by which an administrator may ask for one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ladle.guidance.registry import check_methods
from ladle.merging.family.family import load_family
from ladle.merging.family.manifest import load_manifest
from ladle.merging.family.place import MANIFEST_NAME, find_manifest, installed_families
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.device import early_code
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_admin import EngineAdmin
from ladle.server.engine.forward.servable import require_servable
from ladle.server.hosting import Hosted
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings

logger = logging.getLogger(__name__)


class FamilyFiles:
    """What may be loaded: the family that the server was started with, the built-in ones, and the folders with a
    family.toml in ``families_dir``. A request names one of them; no part of a path is ever made of what it says.

    Args:
        progress: called with one line before anything that takes long, on the loading thread.
    """

    def __init__(self, settings: ServerSettings, progress: Callable[[str], None] = lambda line: None) -> None:
        self._settings = settings
        self._progress = progress
        self._own: dict[str, str] = {}

    def available(self) -> list[str]:
        """Names that may be loaded, as they are found now."""
        return sorted(self._sources())

    def source_of(self, name: str) -> str | None:
        """The folder or built-in family that ``name`` stands for; None for a name that is not available."""
        return self._sources().get(name)

    def members(self, source: str, left_out: frozenset[str]) -> list[str]:
        """Names of the members that ``load`` would load. Raises FamilyError."""
        return [entry.name for _, entry in load_manifest(find_manifest(source), left_out).members()]

    def load(self, source: str, left_out: frozenset[str] = frozenset()) -> Hosted:
        """Load ``source`` without the members ``left_out`` and start its engine.

        Raises:
            FamilyError, InputError: why it cannot be served.
        """
        own = source == self._settings.family
        template = self._settings.chat_template if own else None
        family = load_family(source, self._settings.cache_dir, self._progress, left_out, template)
        for warning in family.warnings:
            logger.warning("%s: %s", family.name, warning)
        check_methods(family)
        require_servable(family)
        self._progress(f"loading {family.name} into the engine")
        config, provisional = self._settings.engine_config(), self._settings.quick_start and early_code.compiling()
        engine = Engine(family, replace(config, compiled_products=False) if provisional else config)
        engine.start()
        if own:
            self._own[family.name] = source
        form = engine.form()
        logger.info("%s runs on: %s", family.name, ", ".join(f"{name} {value}" for name, value in form.items()))
        serving = Serving.of(family, AsyncEngine(engine), engine.vocabulary, form)
        # Beside whatever comes first, which is seldom a grammar; who asks for one waits for this or tries again.
        serving.compiling.submit(serving.grammars.warm)
        return Hosted(serving, EngineAdmin(engine), source, left_out, provisional)

    def _sources(self) -> dict[str, str]:
        sources = {name: name for name in installed_families()}
        folder = self._settings.families_dir
        if folder is not None:
            sources |= {entry.name: str(entry) for entry in _families_in(folder)}
        return sources | self._own


def _families_in(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if (entry / MANIFEST_NAME).is_file()]
    except OSError:
        return []
