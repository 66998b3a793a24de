"""Sparse autoencoders: names of SAELens's directory, Hub repositories and files turned into SAELens SAEs.

What would give silently wrong numbers (transcoders, codes that depend on other tokens, activations normalised at run
time) is refused by name; a decoder that rescales codes is rewritten exactly.
"""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_directory import (
    EMBEDDED_SAE,
    NORMALISED,
    PAPER_MODEL,
    PAPER_REPOSITORIES,
    REFUSED,
    SaeEntry,
    entry_of,
    layer_in,
    only_one,
    only_sae,
    sae_directory,
    why_not,
)

if TYPE_CHECKING:
    from sae_lens import SAE
else:
    SAE = Any  # sae_lens takes seconds to import, so it is imported where it is used

SUPPORTED = ("standard", "gated", "topk", "jumprelu", "abstopk", "matching_pursuit")
_SAYS: dict[str, Any] = {
    **dict.fromkeys(("hook_name", "model_name", "neuronpedia_id"), str), "model_from_pretrained_kwargs": dict,
    "context_size": int, "prepend_bos": bool, "l0": (int, float),
}  # fmt: skip
"""What kind of thing an SAE's metadata says."""
_SUFFIXES, _CONFIG, _WEIGHTS = (".pt", ".pth", ".safetensors"), "cfg.json", "sae_weights.safetensors"


@dataclass(frozen=True)
class SaeSource:
    """An SAE, with what the directory or its own metadata says of it."""

    sae: SAE
    """A SAELens inference SAE. One given in memory is never changed: where a change was needed, this is a copy."""
    name: str
    """Written release:sae_id, owner/name:path, path, or in-memory (architecture)."""
    architecture: str
    hook_name: str | None
    """As the SAE says, e.g. blocks.12.hook_resid_post; None when unknown (a bare state dict)."""
    model_name: str | None
    model_kwargs: dict[str, Any]
    """How the model was loaded when the SAE was trained (metadata.model_from_pretrained_kwargs)."""
    context_size: int | None
    """Tokens."""
    prepend_bos: bool | None
    expected_l0: float | None
    """Active features per token, from the directory or the SAE's training; None when neither says."""
    neuronpedia_id: str | None


@dataclass(frozen=True)
class _Options:
    layer: int | None
    d_in: int | None
    device: str
    dtype: str


def load_sae(
    spec: "str | Path | SAE | None",
    *,
    model_name: str | None = None,
    layer: int | None = None,
    d_in: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
) -> SaeSource:
    """Load an SAE, and refuse what could not be measured rightly.

    Args:
        spec: an SAE in memory (it keeps its device and dtype); "release:sae_id" of SAELens's directory; "owner/name" or
            "owner/name:path" on the Hub; a local SAELens directory; a local .pt or .safetensors state dict (see
            `sae_state_dicts` for what is inferred); or None, for the only SAE known for `model_name` at `layer`.
        model_name: the teacher, any of its names.
        layer: counted from 0; picks among several SAEs.
        d_in: width of the activations that the SAE is to read, checked when given.
        device: where loaded weights go, e.g. "cpu" or "cuda:0".
        dtype: of loaded weights: "float32", "float64", "float16" or "bfloat16".

    Raises:
        InputError: when there is no such SAE, it cannot be read, or measuring it would give wrong numbers.
    """
    if spec is None:
        spec = only_sae(model_name, layer)
    named = isinstance(spec, str | Path)
    source = _load_named(str(spec), _Options(layer, d_in, device, dtype)) if named else _from_memory(spec)
    if d_in not in (None, source.sae.cfg.d_in):
        raise InputError(
            f"{source.name} reads activations of width {source.sae.cfg.d_in}, but {d_in} was expected: "
            "give the SAE of this model and hook point"
        )
    return source


def _load_named(spec: str, options: _Options) -> SaeSource:
    if options.dtype not in ("float32", "float64", "float16", "bfloat16"):
        raise InputError(f"dtype {options.dtype!r} is not known: give float32, float64, float16 or bfloat16")
    if spec == EMBEDDED_SAE:
        return _from_directory(Path(str(files("tl_distill_floor") / "assets" / EMBEDDED_SAE)), spec, options)
    path = Path(spec).expanduser()
    if path.exists():
        return (_from_directory if path.is_dir() else _from_file)(path, spec, options)
    head, _, tail = spec.partition(":")
    if head in sae_directory():
        return _from_release(head, tail, options)
    if spec.startswith((".", "/", "~")) or (not tail and head.endswith(_SUFFIXES)):
        raise InputError(f"there is no file or folder {spec}: give the path of an SAE, or a name (tl-floor saes MODEL)")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", head):
        return _from_hub(head, tail, options)
    near = get_close_matches(head, sae_directory(), n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(near)}?" if near else "list those of a model with tl-floor saes MODEL"
    raise InputError(f"{head!r} is neither a path, a Hub repository nor a release of SAELens's directory: {meant}")


# The places that an SAE comes from


def _from_release(release: str, sae_id: str, options: _Options) -> SaeSource:
    lookup = sae_directory()[release]
    if not sae_id:
        ids = [i for i in lookup.saes_map if options.layer in (None, layer_in(i))] or list(lookup.saes_map)
        sae_id = only_one([f"{release}:{i}" for i in ids], release, options.layer, lookup.model).partition(":")[2]
    if sae_id not in lookup.saes_map:
        near = get_close_matches(sae_id, lookup.saes_map, n=3, cutoff=0.3) or list(lookup.saes_map)[:3]
        raise InputError(f"{release} has no SAE {sae_id!r}: did you mean {' or '.join(near)}?")
    name = f"{release}:{sae_id}"
    if reason := why_not(release, lookup, sae_id):
        raise InputError(f"{name} {reason}")
    import sae_lens

    sae = _load(sae_lens.SAE.from_pretrained, release, sae_id, name=name, options=options)
    return _source(sae, name, entry_of(release, lookup, sae_id))


def _from_hub(repository: str, path: str, options: _Options) -> SaeSource:
    if not path and repository in PAPER_REPOSITORIES and options.layer is not None:
        path = f"sae_layer{options.layer:02d}_final.pt"
    for release, lookup in sae_directory().items():  # with the scaling factors and overrides that the directory knows
        ids = [sae_id for sae_id, folder in lookup.saes_map.items() if path in ("", folder)]
        if lookup.repo_id == repository and ids:
            return _from_release(release, ids[0] if path else "", options)
    path = path or _only_path(repository, options.layer)
    name, place = f"{repository}:{path}", PurePosixPath(path.removesuffix(_WEIGHTS))
    if place.suffix in _SUFFIXES:
        _download(repository, str(place.with_name(_CONFIG)), optional=True)  # `_from_file` looks for it
        return _from_file(_download(repository, path), name, options)
    config = _download(repository, str(place / _CONFIG))
    _download(repository, str(place / _WEIGHTS))
    return _from_directory(config.parent, name, options)


def _only_path(repository: str, layer: int | None) -> str:
    """The only folder or file of a repository that looks like an SAE (at this layer, where paths say one)."""
    files = [PurePosixPath(file) for file in _files_of(repository)]
    folders = [str(file.parent) for file in files if file.name == _WEIGHTS]
    loose = [
        str(file) for file in files if file.suffix in _SUFFIXES and file.name not in (_WEIGHTS, "sparsity.safetensors")
    ]
    paths = [path for path in folders + loose if layer in (None, layer_in(path))] or folders + loose
    if not paths:
        raise InputError(
            f"{repository} holds no SAE that can be read: expected {_CONFIG} with {_WEIGHTS}, or a .pt file"
        )
    return only_one([f"{repository}:{path}" for path in paths], repository, layer).partition(":")[2]


def _files_of(repository: str) -> list[str]:
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list(list_repo_files(repository))
    except Exception as error:  # of huggingface_hub, its HTTP client or requests
        try:
            folder = Path(snapshot_download(repository, local_files_only=True))
        except Exception:
            raise _unreadable(repository, error) from error
        return [file.relative_to(folder).as_posix() for file in sorted(folder.rglob("*")) if file.is_file()]


def _download(repository: str, path: str, *, optional: bool = False) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, path))
    except Exception as error:  # of huggingface_hub, its HTTP client or requests
        if optional and isinstance(error, EntryNotFoundError):
            return Path(path)
        raise _unreadable(f"{repository}:{path}", error) from error


def _from_directory(folder: Path, name: str, options: _Options) -> SaeSource:
    import sae_lens

    missing = [file for file in (_CONFIG, _WEIGHTS) if not (folder / file).is_file()]
    if missing:
        wanted = "expected a SAELens directory, as sae.save_model(path) writes it"
        raise InputError(f"{name} has no {' and no '.join(missing)}: {wanted}")
    _refuse_architecture(str(_read_config(folder).get("architecture", "standard")), name)
    return _source(_load(sae_lens.SAE.load_from_disk, str(folder), name=name, options=options), name)


def _from_file(path: Path, name: str, options: _Options) -> SaeSource:
    from tl_distill_floor.sources.sae_state_dicts import build_sae, infer_weights, read_state_file

    has_config = path.with_name(_CONFIG).is_file()
    if path.name == _WEIGHTS and has_config:
        return _from_directory(path.parent, name, options)
    if path.suffix not in _SUFFIXES:
        raise InputError(f"{name} is not a .pt or .safetensors file: give one, or a SAELens directory")
    settings = _read_config(path.parent) if has_config else {}
    weights = infer_weights(read_state_file(path), source=name, d_in=options.d_in, settings=settings)
    return _source(_load(build_sae, weights, _paper_metadata(name), name=name, options=options), name)


def _paper_metadata(name: str) -> dict[str, Any]:
    numbered = re.fullmatch(r"(.+):sae_layer(\d\d)_\w+\.pt", name)
    if numbered is None or numbered[1] not in PAPER_REPOSITORIES:
        return {}
    return {"model_name": PAPER_MODEL, "hook_name": f"blocks.{int(numbered[2])}.hook_resid_post"}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / _CONFIG).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(f"{folder / _CONFIG} is not a whole JSON object: download or save the SAE again") from error


def _from_memory(sae: Any) -> SaeSource:
    import sae_lens

    from tl_distill_floor.sources.sae_state_dicts import inference_form

    if not isinstance(sae, sae_lens.SAE):
        kind = type(sae).__name__
        raise InputError(f"the SAE is of type {kind}: expected a SAELens SAE, a name such as release:sae_id, or a path")
    sae = inference_form(sae) if isinstance(sae, sae_lens.TrainingSAE) else sae
    return _source(sae, f"in-memory ({sae.cfg.architecture()})")


# What every SAE goes through


def _source(sae: Any, name: str, entry: SaeEntry | None = None) -> SaeSource:
    from tl_distill_floor.sources.sae_state_dicts import with_plain_decoder

    architecture, metadata = sae.cfg.architecture(), _metadata(sae)
    _refuse_architecture(architecture, name)
    _refuse_settings(sae, metadata, name)
    return SaeSource(
        sae=with_plain_decoder(sae),
        name=name,
        architecture=architecture,
        hook_name=metadata.get("hook_name"),
        model_name=metadata.get("model_name"),
        model_kwargs=dict(metadata.get("model_from_pretrained_kwargs") or {}),
        context_size=metadata.get("context_size"),
        prepend_bos=metadata.get("prepend_bos"),
        expected_l0=entry.expected_l0 if entry and entry.expected_l0 else metadata.get("l0"),
        neuronpedia_id=metadata.get("neuronpedia_id") or (entry.neuronpedia_id if entry else None),
    )


def _metadata(sae: Any) -> dict[str, Any]:
    """The only reader of an SAE's metadata, whose attributes are None when they are missing or misspelt."""
    found = dict(sae.cfg.metadata.to_dict())
    for name, kind in _SAYS.items():
        if found.get(name) is not None and not isinstance(found[name], kind):
            raise InputError(
                f"the SAE's configuration says {name} is {found[name]!r:.80}; mend it, or name another --sae"
            )
    return found


def _refuse_architecture(architecture: str, name: str) -> None:
    if architecture in SUPPORTED:
        return
    reasons = [reason for kind, reason in REFUSED.items() if kind in architecture]
    if reasons:
        raise InputError(f"{name} is of the architecture {architecture}, and {reasons[0]}")
    raise InputError(f"{name} is of the unknown architecture {architecture!r}: give one of {', '.join(SUPPORTED)}")


def _refuse_settings(sae: Any, metadata: Mapping[str, Any], name: str) -> None:
    import torch

    normalised = sae.cfg.normalize_activations
    if normalised != "none":
        advice = NORMALISED.get(normalised, "give an SAE trained without it")
        raise InputError(f"{name} has normalize_activations={normalised!r}: {advice}")
    head = metadata.get("hook_head_index")
    if head is not None:
        raise InputError(f"{name} reads attention head {head} alone (hook_head_index): give one of a whole activation")
    broken = [key for key, tensor in sae.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise InputError(f"{name} holds NaN or Inf in {', '.join(broken)}: give one saved before its training broke")


def _load(load: Callable[..., Any], *args: Any, name: str, options: _Options) -> Any:
    """An SAE from SAELens, without its warnings (`model_kwargs` says what they say), its errors made sentences."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(*args, device=options.device, dtype=options.dtype).eval().requires_grad_(False)
    except Exception as error:  # whatever a foreign file or the network makes of it
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> InputError:
    from huggingface_hub import errors
    from requests import RequestException

    said = (str(error).strip().splitlines() or [""])[0][:150].rstrip(" .:")
    if isinstance(error, errors.GatedRepoError):
        return InputError(f"{name} is gated: accept its terms on the Hub, then type hf auth login")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return InputError(f"{name} is neither a local path nor a public repository of the Hub: check its spelling")
    offline = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, RequestException)
    # httpx's class, or from huggingface_hub 2 on httpx2's of the same name
    unreachable = any(kind.__name__ == "TransportError" for kind in type(error).__mro__)
    if isinstance(error, offline) or unreachable:
        return InputError(
            f"{name} is not in the local cache and the Hub cannot be reached: go online once, or give a path"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return InputError(f"{name} does not exist on the Hub: give the repository alone to see what it holds")
    return InputError(
        f"{name} could not be loaded as an SAE ({type(error).__name__}: {said}): download or save it again"
    )


def sae_digest(sae: Any) -> str:
    """Differs when the SAE does."""
    found = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().double().sum(0).numpy().tobytes())
    return found.hexdigest()[:16]
