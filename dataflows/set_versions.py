"""Versions of feature sets beside each other: which one a run computes, and which recovery folder is its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dataflows.recovery import was_made
from operators.errors import ConfigError
from operators.feature_sets import FeatureSets

if TYPE_CHECKING:
    from pathlib import Path

    from dataflows.config import Settings
    from operators.feature_sets import FeatureSet


def chosen_set(settings: Settings, name: str, version: int | None) -> FeatureSet:
    """Return the declared set of that name and version (None: the only one).

    Raises ConfigError naming those that are declared if it is none of them.
    """
    found = [s for s in settings.feature_sets().sets if s.name == name]
    mine = [s for s in found if version in (None, s.version)]
    if len(mine) == 1:
        return mine[0]
    path = settings.feature_sets_path
    if not found:
        names = ", ".join(f"`{s.name}`" for s in settings.feature_sets().sets)
        raise ConfigError(f"feature set `{name}` is not declared in `{path}`; declared are {names}")
    versions = ", ".join(str(s.version) for s in found)
    if version is None:
        raise ConfigError(f"feature set `{name}` is declared in versions {versions}; name one with --version")
    raise ConfigError(
        f"feature set `{name}` is not declared in version {version} but in {versions}: add a [[feature_set]] with that"
        f" version to `{path}`"
    )


def folder_of(settings: Settings, declared: FeatureSet) -> Path:
    """The recovery folder of a version that is run alone, beside the other sets."""
    return settings.recovery_dir / f"{declared.name}-v{declared.version}"


def sets_run_together(settings: Settings) -> FeatureSets:
    """The declared sets without those that have a recovery folder of their own, since another run computes these.

    Raises ConfigError if none is left.
    """
    declared = settings.feature_sets().sets
    together = tuple(s for s in declared if not was_made(folder_of(settings, s)))
    if not together:
        raise ConfigError(
            f"every declared feature set has a recovery folder of its own in `{settings.recovery_dir}`: run one, as"
            f" `headrace signals --feature-set {declared[0].name} --version {declared[0].version}`"
        )
    return FeatureSets(together)
