"""A Hugging Face cache on disk, laid out as huggingface_hub does, so that Hub names load without a network."""

import hashlib
import shutil
from pathlib import Path

import pytest


def add_to_cache(cache_dir: Path, repo_id: str, files: dict[str, Path]) -> Path:
    """Put copies of `files` (path in the repository: file on disk) into the cache; returns the snapshot's folder.

    `cache_dir` is what HF_HUB_CACHE names. A subprocess reads it with HF_HUB_CACHE=cache_dir and HF_HUB_OFFLINE=1 in
    its environment, this process after `use_cache`.
    """
    commit = hashlib.sha1(repo_id.encode()).hexdigest()
    repository = cache_dir / f"models--{repo_id.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for name, file in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, snapshot / name)
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(commit)
    return snapshot


def use_cache(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    """Let this process and its children read the Hub from `cache_dir` alone, without a network."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # huggingface_hub reads the environment once, at its import
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache_dir))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
