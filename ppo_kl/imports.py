"""Classes that settings name as package.module:Class, and who may import their modules.

A module runs code when it is imported, so that only what a user names does it: the command line, a configuration file
or `load_config`. A checkpoint or a run folder may come from anybody: what it names must have been imported before.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from typing import Any

from ppo_kl.config import TrainConfig
from ppo_kl.errors import ConfigError, PPOKLError


def module_of(name: str) -> str | None:
    """The module in `package.module:Class`; none where there is no colon."""
    module, colon, _ = name.partition(":")
    return module if colon else None


def modules_in(config: TrainConfig) -> list[str]:
    """The modules that a configuration names."""
    names = [config.env.id, *config.env.wrappers, config.policy.module or ""]
    return [module for name in names if (module := module_of(name)) is not None]


def import_modules_in(config: TrainConfig, saved: TrainConfig | None = None) -> None:
    """Import what a user's configuration names, but for what comes with the settings of a saved run that it began from.

    Args:
        config: the whole configuration.
        saved: the saved run's; none: it began from none.

    Raises:
        ConfigError: one cannot be imported.
    """
    import_modules(set(modules_in(config)) - set(modules_in(saved) if saved is not None else ()), "module")


def import_modules(modules: Iterable[str], asked: str) -> None:
    """Import modules that a user named, from the working folder too, as `python -m` would.

    Args:
        modules: as in `import MODULE`.
        asked: where they were named, for the message.

    Raises:
        ConfigError: one cannot be imported.
    """
    for module in modules:
        if module in sys.modules:
            continue
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(module)
        except PPOKLError:
            raise
        except Exception as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            at = "" if isinstance(error, ModuleNotFoundError | SyntaxError) else f" ({last.filename}:{last.lineno})"
            raise ConfigError(
                f"{asked} {module}: cannot be imported: {type(error).__name__}: {error}{at}; name a module as in "
                f"`import {module}`, in {os.getcwd()} or installed"
            ) from error


def attribute_named(name: str, key: str) -> Any:
    """What `package.module:Name` names; none where the module has no such name.

    Args:
        name: with a colon.
        key: the setting's dotted name, for the message.

    Raises:
        ConfigError: the module has not been imported.
    """
    module, _, attribute = name.partition(":")
    if module not in sys.modules:
        raise ConfigError(
            f"{key}={name!r}: module {module!r} is not imported, and what a saved run names is never imported by "
            f"itself; if you trust it, `import {module}` before, or give --plugin {module}"
        )
    return getattr(sys.modules[module], attribute, None)


def class_named(name: str, base: type[Any], key: str) -> type[Any]:
    """The class that `package.module:Class` names, which must be a `base`.

    Raises:
        ConfigError: there is none, or it is something else.
    """
    found = attribute_named(name, key)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(
            f"{key}={name!r}: expected a subclass of {base.__module__}.{base.__qualname__}, got {found!r}"
        )
    return found
