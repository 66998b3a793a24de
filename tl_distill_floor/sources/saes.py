"""Load SAEs by name, from files and from memory, as SAELens SAEs.

An SAE whose measurement would be silently wrong is refused: transcoders, codes that depend on other tokens, and
activations normalised at run time. A decoder that rescales the codes is rewritten to an equivalent one that does not.
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
from typing import Any, Literal

from tl_distill_floor.annotations import SaeLike, SaeModule
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.sources.hub import download_file, download_if_present, is_repository_name, list_files, load_error
from tl_distill_floor.sources.sae_directory import (
    EMBEDDED_SAE,
    NORMALISATION_ADVICE,
    PAPER_MODEL,
    PAPER_REPOSITORIES,
    UNSUPPORTED_ARCHITECTURES,
    SaeEntry,
    choose_known_sae,
    directory_entry,
    layer_from_id,
    refusal_reason,
    require_single_sae,
    sae_directory,
)

SaeDtype = Literal["float32", "float64", "float16", "bfloat16"]
SUPPORTED_ARCHITECTURES = ("standard", "gated", "topk", "jumprelu", "abstopk", "matching_pursuit")
METADATA_TYPES: dict[str, type | tuple[type, ...]] = {
    "hook_name": str, "model_name": str, "neuronpedia_id": str, "model_from_pretrained_kwargs": dict,
    "context_size": int, "prepend_bos": bool, "l0": (int, float),
}  # fmt: skip
STATE_FILE_SUFFIXES = (".pt", ".pth", ".safetensors")
CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"


@dataclass(frozen=True)
class SaeSource:
    """An SAE with what SAELens's directory or its own metadata says about it."""

    sae: SaeModule
    """SAELens inference SAE. An SAE given in memory is never changed; if a change was needed, this is a copy."""
    name: str
    """Name: release:sae_id, owner/name:path, a path, or in-memory (architecture)."""
    architecture: str
    hook_name: str | None
    """Hook point in the SAE's metadata, such as blocks.12.hook_resid_post; None for a state dict."""
    model_name: str | None
    """Model that the SAE was trained on; None if not known."""
    model_kwargs: dict[str, Any]
    """Options with which the model was loaded when the SAE was trained (metadata.model_from_pretrained_kwargs)."""
    context_size: int | None
    """Tokens per sequence when the SAE was trained; None if not known."""
    prepend_bos: bool | None
    """Whether sequences began with a beginning-of-sequence token when the SAE was trained; None if not known."""
    expected_l0: float | None
    """Active features per token, from the directory or the SAE's training; None if not known."""
    neuronpedia_id: str | None


@dataclass(frozen=True)
class _LoadOptions:
    layer: int | None
    d_in: int | None
    device: str
    dtype: SaeDtype


def load_sae(
    spec: SaeLike | None,
    *,
    model_name: str | None = None,
    layer: int | None = None,
    d_in: int | None = None,
    device: str = "cpu",
    dtype: SaeDtype = "float32",
) -> SaeSource:
    """Load an SAE, or wrap one in memory, and check that it can be measured.

    Args:
        spec: one of

            - a SAELens SAE in memory, which keeps its device and dtype;
            - "release:sae_id" of SAELens's directory;
            - a Hub repository, "owner/name" or "owner/name:path";
            - a SAELens directory;
            - a `.pt` or `.safetensors` state dict, see `sae_state_dicts` for what is inferred from it;
            - None, for the only SAE known for `model_name` at `layer`.
        model_name: any name of the teacher; used if `spec` is None.
        layer: layer, counted from 0; chooses among several SAEs.
        d_in: width of the activations that the SAE must read; not checked if None.
        device: torch device of loaded weights.
        dtype: dtype of loaded weights.

    Returns:
        The SAE in inference form, with weights `W_enc` [d_in, d_sae] and `W_dec` [d_sae, d_in], and its metadata.

    Raises:
        InputError: there is no such SAE, it cannot be read, or measuring it would give wrong numbers.

    Example:
        >>> source = load_sae("tiny-prose-sae")
        >>> source.hook_name
        'blocks.1.hook_resid_post'
    """
    if spec is None:
        spec = choose_known_sae(model_name, layer)
    if isinstance(spec, str | Path):
        check_choice("dtype", dtype, SaeDtype)
        source = _load_named(str(spec), _LoadOptions(layer, d_in, device, dtype))
    else:
        source = _from_memory(spec)
    if d_in not in (None, source.sae.cfg.d_in):
        raise InputError(
            f"{source.name} reads activations of width {source.sae.cfg.d_in}, but {d_in} was expected;"
            " give the SAE of this model and hook point"
        )
    return source


def sae_digest(sae: SaeModule) -> str:
    """Return a digest of an SAE's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().double().sum(0).numpy().tobytes())
    return digest.hexdigest()[:16]


def _load_named(spec: str, options: _LoadOptions) -> SaeSource:
    if spec == EMBEDDED_SAE:
        return _from_directory(Path(str(files("tl_distill_floor") / "assets" / EMBEDDED_SAE)), spec, options)
    path = Path(spec).expanduser()
    if path.is_dir():
        return _from_directory(path, spec, options)
    if path.exists():
        return _from_file(path, spec, options)
    head, _, tail = spec.partition(":")
    if head in sae_directory():
        return _from_release(head, tail, options)
    if spec.startswith((".", "/", "~")) or (not tail and head.endswith(STATE_FILE_SUFFIXES)):
        raise InputError(f"there is no file or folder {spec}; give the path of an SAE, or a name (tl-floor saes MODEL)")
    if is_repository_name(head):
        return _from_hub(head, tail, options)
    close = get_close_matches(head, sae_directory(), n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(close)}?" if close else "list those of a model with tl-floor saes MODEL"
    raise InputError(f"{head!r} is neither a path, a Hub repository nor a release of SAELens's directory; {advice}")


# Sources of an SAE


def _from_release(release: str, sae_id: str, options: _LoadOptions) -> SaeSource:
    lookup = sae_directory()[release]
    if not sae_id:
        sae_ids = list(lookup.saes_map)
        at_layer = [sae_id for sae_id in sae_ids if options.layer in (None, layer_from_id(sae_id))]
        specs = [f"{release}:{sae_id}" for sae_id in at_layer or sae_ids]
        sae_id = require_single_sae(specs, release, options.layer, lookup.model).partition(":")[2]
    if sae_id not in lookup.saes_map:
        close = get_close_matches(sae_id, lookup.saes_map, n=3, cutoff=0.3) or list(lookup.saes_map)[:3]
        raise InputError(f"{release} has no SAE {sae_id!r}; did you mean {' or '.join(close)}?")
    name = f"{release}:{sae_id}"
    if reason := refusal_reason(release, lookup, sae_id):
        raise InputError(f"{name} {reason}")
    import sae_lens

    sae = _load(sae_lens.SAE.from_pretrained, release, sae_id, name=name, options=options)
    return _checked_source(sae, name, directory_entry(release, lookup, sae_id))


def _from_hub(repository: str, path: str, options: _LoadOptions) -> SaeSource:
    if not path and repository in PAPER_REPOSITORIES and options.layer is not None:
        path = f"sae_layer{options.layer:02d}_final.pt"
    for release, lookup in sae_directory().items():  # the directory knows scaling factors that the repository lacks
        sae_ids = [sae_id for sae_id, folder in lookup.saes_map.items() if path in ("", folder)]
        if lookup.repo_id == repository and sae_ids:
            return _from_release(release, sae_ids[0] if path else "", options)
    path = path or _only_sae_path(repository, options.layer)
    name, location = f"{repository}:{path}", PurePosixPath(path.removesuffix(WEIGHTS_FILE))
    if location.suffix in STATE_FILE_SUFFIXES:
        download_if_present(repository, str(location.with_name(CONFIG_FILE)))  # `_from_file` looks for it
        return _from_file(download_file(repository, path), name, options)
    config = download_file(repository, str(location / CONFIG_FILE))
    download_file(repository, str(location / WEIGHTS_FILE))
    return _from_directory(config.parent, name, options)


def _only_sae_path(repository: str, layer: int | None) -> str:
    """Return the only SAE folder or file of a repository, at a layer if the paths name layers."""
    paths = [PurePosixPath(file) for file in list_files(repository)]
    folders = [str(path.parent) for path in paths if path.name == WEIGHTS_FILE]
    not_state_dicts = (WEIGHTS_FILE, "sparsity.safetensors")
    state_files = [
        str(path) for path in paths if path.suffix in STATE_FILE_SUFFIXES and path.name not in not_state_dicts
    ]
    saes = folders + state_files
    saes = [path for path in saes if layer in (None, layer_from_id(path))] or saes
    if not saes:
        raise InputError(
            f"{repository} holds no SAE that can be read; expected {CONFIG_FILE} with {WEIGHTS_FILE}, or a .pt file"
        )
    return require_single_sae([f"{repository}:{path}" for path in saes], repository, layer).partition(":")[2]


def _from_directory(folder: Path, name: str, options: _LoadOptions) -> SaeSource:
    import sae_lens

    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{name} has no {' and no '.join(missing)}; give a SAELens directory, as sae.save_model(path) writes it"
        )
    _check_architecture(str(_read_config(folder).get("architecture", "standard")), name)
    return _checked_source(_load(sae_lens.SAE.load_from_disk, str(folder), name=name, options=options), name)


def _from_file(path: Path, name: str, options: _LoadOptions) -> SaeSource:
    from tl_distill_floor.sources.sae_state_dicts import build_sae, infer_weights, read_state_file

    has_config = path.with_name(CONFIG_FILE).is_file()
    if path.name == WEIGHTS_FILE and has_config:
        return _from_directory(path.parent, name, options)
    if path.suffix not in STATE_FILE_SUFFIXES:
        raise InputError(f"{name} is not a .pt or .safetensors file; give one, or a SAELens directory")
    settings = _read_config(path.parent) if has_config else {}
    weights = infer_weights(read_state_file(path), source=name, d_in=options.d_in, settings=settings)
    return _checked_source(_load(build_sae, weights, _paper_metadata(name), name=name, options=options), name)


def _from_memory(sae: object) -> SaeSource:
    import sae_lens

    from tl_distill_floor.sources.sae_state_dicts import inference_form

    if not isinstance(sae, sae_lens.SAE):
        raise InputError(
            f"the SAE is of type {type(sae).__name__}, expected a SAELens SAE; give one, a name such as"
            " release:sae_id, or a path"
        )
    inference_sae = inference_form(sae) if isinstance(sae, sae_lens.TrainingSAE) else sae
    return _checked_source(inference_sae, f"in-memory ({inference_sae.cfg.architecture()})")


def _paper_metadata(name: str) -> dict[str, str]:
    """Return the metadata of one of the paper's SAEs, whose files hold none; empty for any other SAE."""
    match = re.fullmatch(r"(.+):sae_layer(\d\d)_\w+\.pt", name)
    if match is None or match[1] not in PAPER_REPOSITORIES:
        return {}
    return {"model_name": PAPER_MODEL, "hook_name": f"blocks.{int(match[2])}.hook_resid_post"}


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE} is not a complete JSON object; download or save the SAE again"
        ) from error


def _load(load: Callable[..., Any], *args: object, name: str, options: _LoadOptions) -> Any:
    """Call one of SAELens's loaders without its warnings, and turn its errors into an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(*args, device=options.device, dtype=options.dtype).eval().requires_grad_(False)
    except Exception as error:  # a foreign file or the network can raise anything
        raise load_error(name, error) from error


# Checks of every SAE


def _checked_source(sae: SaeModule, name: str, entry: SaeEntry | None = None) -> SaeSource:
    from tl_distill_floor.sources.sae_state_dicts import with_plain_decoder

    architecture, metadata = sae.cfg.architecture(), _read_metadata(sae)
    _check_architecture(architecture, name)
    _check_settings(sae, metadata, name)
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


def _read_metadata(sae: SaeModule) -> dict[str, Any]:
    """Return the metadata of an SAE as a dictionary, since its attributes are None if missing or misspelt."""
    metadata = dict(sae.cfg.metadata.to_dict())
    for name, expected in METADATA_TYPES.items():
        value = metadata.get(name)
        if value is not None and not isinstance(value, expected):
            raise InputError(
                f"{name} in the SAE's configuration is {value!r:.80}, which is not of the expected type; correct it,"
                " or give another --sae"
            )
    return metadata


def _check_architecture(architecture: str, name: str) -> None:
    if architecture in SUPPORTED_ARCHITECTURES:
        return
    reasons = [reason for kind, reason in UNSUPPORTED_ARCHITECTURES.items() if kind in architecture]
    if reasons:
        raise InputError(f"{name} is of the architecture {architecture}, and {reasons[0]}")
    raise InputError(
        f"{name} is of the unknown architecture {architecture!r}; give one of {', '.join(SUPPORTED_ARCHITECTURES)}"
    )


def _check_settings(sae: SaeModule, metadata: Mapping[str, Any], name: str) -> None:
    import torch

    normalisation = sae.cfg.normalize_activations
    if normalisation != "none":
        advice = NORMALISATION_ADVICE.get(normalisation, "give an SAE trained without it")
        raise InputError(f"{name} has normalize_activations={normalisation!r}; {advice}")
    head = metadata.get("hook_head_index")
    if head is not None:
        raise InputError(f"{name} reads only attention head {head} (hook_head_index); give an SAE of all heads")
    not_finite = [key for key, tensor in sae.state_dict().items() if not bool(torch.isfinite(tensor).all())]
    if not_finite:
        raise InputError(f"{name} holds NaN or Inf in {', '.join(not_finite)}; give one saved before training diverged")
