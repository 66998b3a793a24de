"""Download files of the Hugging Face Hub or read them from its cache, and explain failures to load an SAE."""

import re
from pathlib import Path

from tl_distill_floor.errors import InputError, reason_of

MAX_REASON_CHARACTERS = 150
"""Characters of an error of the Hub that a message quotes."""


def is_repository_name(name: str) -> bool:
    """Return whether a name has the form `owner/name` of a Hub repository."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def list_files(repository: str) -> list[str]:
    """Return the paths of a repository's files: from the Hub, or offline those in the local cache.

    Raises:
        InputError: the repository is neither on the Hub nor in the cache.
    """
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list(list_repo_files(repository))
    except Exception as error:  # raised by huggingface_hub, its HTTP client or requests
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except Exception:
            raise load_error(repository, error) from error
        return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def download_file(repository: str, path: str) -> Path:
    """Return the local path of a repository's file, downloaded if it is not in the cache.

    Raises:
        InputError: the file is neither on the Hub nor in the cache.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, path))
    except Exception as error:  # raised by huggingface_hub, its HTTP client or requests
        raise load_error(f"{repository}:{path}", error) from error


def load_error(name: str, error: Exception) -> InputError:
    """Return an InputError that says why an SAE could not be loaded, and what to do.

    Args:
        name: name of the SAE, for the message.
        error: the exception that loading it raised.
    """
    from huggingface_hub import errors
    from requests import RequestException

    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{name} is gated; accept its terms on the Hub, then type hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return InputError(f"{name} is neither a local path nor a public repository of the Hub; check its spelling")
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, RequestException)
    # httpx raises it, and from huggingface_hub 2 on httpx2, under the same class name.
    unreachable = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    if isinstance(error, offline) or unreachable:
        return InputError(
            f"{name} is not in the local cache and the Hub cannot be reached; go online once, or give a path"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{name} does not exist on the Hub; give the repository alone to list its SAEs")
    reason = reason_of(error)[:MAX_REASON_CHARACTERS].rstrip(" .:")
    return InputError(
        f"{name} could not be loaded as an SAE ({type(error).__name__}: {reason}); download or save it again"
    )
