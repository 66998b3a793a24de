"""Fill a Hugging Face cache in the layout of huggingface_hub, so that Hub names load without a network."""

import hashlib
import shutil
from pathlib import Path

import pytest


def add_to_cache(cache_dir: Path, repo_id: str, files: dict[str, Path]) -> Path:
    """Copy files into the cache.

    A subprocess reads the cache with HF_HUB_CACHE=cache_dir and HF_HUB_OFFLINE=1 in its environment, this process after
    `use_cache`.

    Args:
        cache_dir: the directory that HF_HUB_CACHE names.
        repo_id: name of the repository, `owner/name`.
        files: for each path in the repository the file on disk.

    Returns:
        The directory of the repository's snapshot.
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
    """Make this process and its children read the Hub only from `cache_dir`, without a network."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(cache_dir))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # huggingface_hub reads the environment only when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache_dir))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
