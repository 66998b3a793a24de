"""Names of the files that hold an SAE and its configuration."""

import re
from pathlib import PurePath, PurePosixPath
from typing import TypeVar

AnyPath = TypeVar("AnyPath", bound=PurePath)
CONFIG_FILE, WEIGHTS_FILE, RUNNER_FILE = "cfg.json", "sae_weights.safetensors", "runner_cfg.json"
"""Files of a SAELens directory."""
STATE_FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".npz")
CONFIG_FILES = (
    "cfg.json", "config.json", "hyperparams.json", "sae_config.json", "sae_cfg.json", "sae.cfg", "config.yaml",
    "config.yml", "cfg.yaml", "conf.yaml", "runner_cfg.json",
)  # fmt: skip
"""Configuration files that are read in the folder of the weights."""
PARENT_CONFIG_FILES = ("hyperparams.json", "config.json", "cfg.json", "config.yaml")
"""Configuration files that are also read in the parent folder."""
_NOT_WEIGHTS = (
    "sparsity.safetensors", "optimizer", "scheduler", "lr_scheduler", "rng_state", "training_args", "trainer_state",
    "rank_", "state.pt",
)  # fmt: skip
"""Beginnings of the names of files that hold no SAE."""


def is_weights(file: str) -> bool:
    """Return whether a file's name is that of weights."""
    path = PurePosixPath(file)
    return path.suffix in STATE_FILE_SUFFIXES and not path.name.startswith(_NOT_WEIGHTS)


def training_folder(folder: AnyPath) -> AnyPath:
    """Return the folder above that of an SAE, which holds the settings of its training.

    sparsify adds a folder for each random seed: layers.3/seed0.
    """
    return folder.parent.parent if re.fullmatch(r"seed\d+", folder.name) else folder.parent


def own_configs(weights: str) -> tuple[str, ...]:
    """Return the names of configuration files that are named after a file of weights, such as 25_cfg.json."""
    stem = weights.removesuffix(PurePosixPath(weights).suffix)
    return tuple(f"{stem}{ending}" for ending in (".json", "_cfg.json", "_config.json", ".yaml"))


def is_config_of(file: str, weights: PurePosixPath) -> bool:
    """Return whether a file may be the configuration of the weights, by its folder and name."""
    path = PurePosixPath(file)
    if path.parent == weights.parent:
        return path.name in (*CONFIG_FILES, *own_configs(weights.name))
    return path.parent == training_folder(weights.parent) and path.name in (*CONFIG_FILES, *PARENT_CONFIG_FILES)
