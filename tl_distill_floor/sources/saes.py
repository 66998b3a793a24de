"""Load SAEs by name, from files and from memory, as SAELens SAEs.

An SAE whose measurement would be silently wrong is refused: transcoders, codes that depend on other tokens, and
activations normalised at run time. A decoder that rescales the codes is rewritten to an equivalent one that does not.
"""

import dataclasses
import hashlib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tl_distill_floor.annotations import FormattedSae, SaeLike, SaeModule
from tl_distill_floor.errors import InputError, check_choice
from tl_distill_floor.sources.hub import download_file, is_repository_name, list_files, load_error
from tl_distill_floor.sources.sae_directory import (
    EMBEDDED_SAE,
    MAX_LISTED,
    PAPER_REPOSITORIES,
    choose_known_sae,
    directory_entry,
    layer_from_id,
    refusal_reason,
    require_single_sae,
    sae_directory,
)
from tl_distill_floor.sources.sae_formats.file_names import (
    CONFIG_FILE,
    CONFIG_FILES,
    RUNNER_FILE,
    STATE_FILE_SUFFIXES,
    WEIGHTS_FILE,
    is_config_of,
    is_weights,
)
from tl_distill_floor.sources.sae_formats.hook_names import MODULE_NAME
from tl_distill_floor.sources.sae_source import SaeSource, check_architecture, checked_source
from tl_distill_floor.sources.torch_state import neutral_torch_state, without_compilation

__all__ = ["SaeDtype", "SaeSource", "load_sae", "sae_digest"]
OWN_READERS = ("llama_scope", "llama_scope_r1_distill")
"""Formats of SAELens's directory that SAELens reads in another way than their authors: it compares the pre-activation
of a Llama Scope SAE with its threshold, not the pre-activation times the norm of the decoder row. Of those of
DeepSeek-R1-Distill-Llama-8B it also names another teacher."""
CHECKPOINTS = "checkpoints"
"""Folder with earlier weights of the SAE next to it."""
MAX_FOLDERS = 3
"""Folders below a local directory in which SAEs are searched."""
SaeDtype = Literal["float32", "float64", "float16", "bfloat16"]


@dataclass(frozen=True)
class _LoadOptions:
    layer: int | None
    d_in: int | None
    device: str
    dtype: SaeDtype
    sae_format: str | None


@neutral_torch_state()
def load_sae(
    spec: SaeLike | None,
    *,
    model_name: str | None = None,
    layer: int | None = None,
    d_in: int | None = None,
    device: str = "cpu",
    dtype: SaeDtype = "float32",
    sae_format: str | None = None,
) -> SaeSource:
    """Load an SAE, or wrap one in memory, and check that it can be measured.

    Args:
        spec: one of

            - a SAELens SAE in memory, which keeps its device and dtype;
            - "release:sae_id" of SAELens's directory;
            - a Hub repository, "owner/name" or "owner/name:path";
            - a SAELens directory, the directory of another published format, or one that holds such directories;
            - a `.pt`, `.safetensors` or `.npz` file, see `sae_formats` for the formats;
            - None, for the only SAE known for `model_name` at `layer`.
        model_name: any name of the teacher; used if `spec` is None.
        layer: layer, counted from 0; chooses among several SAEs.
        d_in: width of the activations that the SAE must read; not checked if None.
        device: torch device of loaded weights.
        dtype: dtype of loaded weights.
        sae_format: what the keys of a file mean, if its format is not recognised: the name of a format, or a JSON
            object such as {"W_enc": "enc.w", "W_dec": "dec.w", "activation": "topk", "k": 32}; see `KeyMap`.

    Returns:
        The SAE in inference form, with weights `W_enc` [d_in, d_sae] and `W_dec` [d_sae, d_in], and its metadata.

    Raises:
        InputError: there is no such SAE, it cannot be read, or measuring it would give wrong numbers.

    Example:
        >>> source = load_sae("tiny-prose-sae")
        >>> source.hook_name
        'blocks.1.hook_resid_post'
    """
    if isinstance(spec, FormattedSae):
        sae_format = spec.sae_format
        spec = spec.spec
    if spec is None:
        spec = choose_known_sae(model_name, layer)
    if isinstance(spec, str | Path):
        check_choice("dtype", dtype, SaeDtype)
        source = _load_named(str(spec), _LoadOptions(layer, d_in, device, dtype, sae_format))
    else:
        source = _from_memory(spec)
        _refuse_format(source.name, sae_format)
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
    _refuse_format(name, options.sae_format)
    entry = directory_entry(release, lookup, sae_id)
    if lookup.conversion_func in OWN_READERS:
        source = _from_repository(lookup.repo_id, lookup.saes_map[sae_id], options)
        model_name, l0 = source.model_name or lookup.model, entry.expected_l0 or source.expected_l0
        return dataclasses.replace(
            source, name=name, model_name=model_name, expected_l0=l0, neuronpedia_id=entry.neuronpedia_id
        )
    import sae_lens

    return checked_source(_load(sae_lens.SAE.from_pretrained, release, sae_id, name=name, options=options), name, entry)


def _from_hub(repository: str, path: str, options: _LoadOptions) -> SaeSource:
    if not path and repository in PAPER_REPOSITORIES and options.layer is not None:
        path = f"sae_layer{options.layer:02d}_final.pt"
    for release, lookup in sae_directory().items():  # the directory knows scaling factors that the repository lacks
        sae_ids = [sae_id for sae_id, folder in lookup.saes_map.items() if path in ("", folder)]
        if lookup.repo_id == repository and sae_ids:
            return _from_release(release, sae_ids[0] if path else "", options)
    return _from_repository(repository, path or _only_sae_path(repository, options.layer), options)


def _from_repository(repository: str, path: str, options: _LoadOptions) -> SaeSource:
    """Load a folder or a file of a Hub repository."""
    name, location = f"{repository}:{path}", PurePosixPath(path.removesuffix(WEIGHTS_FILE))
    files = list_files(repository)
    if location.suffix not in STATE_FILE_SUFFIXES and str(location / WEIGHTS_FILE) not in files:
        inside = _sae_paths((file for file in files if PurePosixPath(file).is_relative_to(location)), options.layer)
        if inside:
            specs = [f"{repository}:{path}" for path in inside]
            location = PurePosixPath(require_single_sae(specs, name, options.layer).partition(":")[2])
    weights, has_saelens_config = location / WEIGHTS_FILE, str(location / CONFIG_FILE) in files
    if str(weights) in files and not has_saelens_config and any(is_config_of(file, weights) for file in files):
        location = weights  # OpenMOSS gives the weights the same name as SAELens
    if location.suffix in STATE_FILE_SUFFIXES:
        for file in files:
            if is_config_of(file, location):
                download_file(repository, file)  # `_from_file` looks for it
        return _from_file(download_file(repository, str(location)), f"{repository}:{location}", options)
    config = download_file(repository, str(location / CONFIG_FILE))
    download_file(repository, str(location / WEIGHTS_FILE))
    if str(location / RUNNER_FILE) in files:
        download_file(repository, str(location / RUNNER_FILE))
    return _from_directory(config.parent, name, options)


def _only_sae_path(repository: str, layer: int | None) -> str:
    """Return the only SAE folder or file of a repository, at a layer if the paths name layers."""
    saes = _sae_paths(list_files(repository), layer)
    if not saes:
        raise InputError(
            f"{repository} holds no SAE that can be read; expected {CONFIG_FILE} with {WEIGHTS_FILE}, or a .pt file"
        )
    return require_single_sae([f"{repository}:{path}" for path in saes], repository, layer).partition(":")[2]


def _sae_paths(files: Iterable[str], layer: int | None) -> list[str]:
    """Return the SAEs among some files, each a SAELens folder or a file: those at a layer if the paths name layers.

    The checkpoints of an SAE are left out.
    """
    weights = [PurePosixPath(file) for file in files if is_weights(file)]
    folders_of_saes = {path.parent for path in weights}
    weights = [path for path in weights if path.parent.name != CHECKPOINTS or path.parent.parent not in folders_of_saes]
    folders = [str(path.parent) for path in weights if path.name == WEIGHTS_FILE]
    saes = folders + [str(path) for path in weights if path.name != WEIGHTS_FILE]
    return [path for path in saes if layer in (None, layer_from_id(path))] or saes


def _from_directory(folder: Path, name: str, options: _LoadOptions) -> SaeSource:
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if not missing:
        return _from_saelens_directory(folder, name, options)
    weights = _weights_in(folder) or _weights_in(folder / CHECKPOINTS)
    has_config = any((folder / file).is_file() for file in CONFIG_FILES)
    if not weights and (below := _sae_paths(_files_below(folder), options.layer)):
        path = require_single_sae([str(folder / path) for path in below], name, options.layer)
        return _load_named(path, options)
    if not weights or (weights == [folder / WEIGHTS_FILE] and not has_config):
        raise InputError(
            f"{name} has no {' and no '.join(missing)}; give a SAELens directory, as sae.save_model(path) writes it"
        )
    if len(weights) > 1:
        listed = ", ".join(str(file.relative_to(folder)) for file in weights[:MAX_LISTED])
        raise InputError(f"{name} holds {len(weights)} files of weights ({listed}); give the path of one of them")
    return _from_file(weights[0], name if weights[0].parent == folder else str(weights[0]), options)


def _weights_in(folder: Path) -> list[Path]:
    """Return the files of weights in a folder, by name; none if there is no such folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in files if file.is_file() and is_weights(file.as_posix())]


def _files_below(folder: Path) -> list[str]:
    """Return the files in the folders of a folder, down to `MAX_FOLDERS` below it, as paths relative to it."""
    levels = (sorted(folder.glob("/".join(["*"] * n))) for n in range(2, MAX_FOLDERS + 2))
    return [file.relative_to(folder).as_posix() for files in levels for file in files if file.is_file()]


def _from_saelens_directory(folder: Path, name: str, options: _LoadOptions) -> SaeSource:
    import sae_lens

    from tl_distill_floor.sources.sae_formats.files import read_config
    from tl_distill_floor.sources.sae_formats.saelens import check_config, habits_of_directory

    _refuse_format(name, options.sae_format)
    config = read_config(folder / CONFIG_FILE)
    check_architecture(str(config.get("architecture", "standard")), name)
    check_config(config, name, folder / WEIGHTS_FILE)
    sae = _load(sae_lens.SAE.load_from_disk, str(folder), name=name, options=options)
    for key, value in habits_of_directory(folder).items():
        if key not in sae.cfg.metadata:
            sae.cfg.metadata[key] = value
    return checked_source(sae, name)


def _from_file(path: Path, name: str, options: _LoadOptions) -> SaeSource:
    from tl_distill_floor.sources.sae_formats.building import build_sae
    from tl_distill_floor.sources.sae_formats.files import read_sae_file
    from tl_distill_floor.sources.sae_formats.key_map import parse_format
    from tl_distill_floor.sources.sae_formats.registry import read_weights
    from tl_distill_floor.sources.sae_formats.settings import named_module

    key_map = parse_format(options.sae_format)
    if path.name == WEIGHTS_FILE and path.with_name(CONFIG_FILE).is_file() and not key_map.explains_weights:
        return _from_saelens_directory(path.parent, name, options)
    if path.suffix not in STATE_FILE_SUFFIXES:
        raise InputError(f"{name} is not a .pt, .safetensors or .npz file; give one, or a SAELens directory")
    file = read_sae_file(path, name)
    try:
        weights = read_weights(file, key_map, options.d_in)
    except InputError:
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:  # foreign settings can be of any type
        raise load_error(name, error) from error
    layer = weights.metadata.get("layer")
    if layer is not None and options.layer not in (None, layer):
        raise InputError(
            f"{name} reads layer {layer}, not layer {options.layer}; set --layer {layer}, or another --sae"
        )
    hook_name = weights.metadata.get("hook_name")
    if isinstance(hook_name, str) and file.hook_name is None and (module := named_module(file, hook_name)):
        weights.metadata[MODULE_NAME] = module
    return checked_source(_load(build_sae, weights, name=name, options=options), name)


def _refuse_format(name: str, sae_format: str | None) -> None:
    """Raise an InputError if a format is given for an SAE whose configuration says what it is."""
    if sae_format not in (None, "saelens"):
        raise InputError(f"{name} says itself what its weights mean; leave out --sae-format")


def _from_memory(sae: object) -> SaeSource:
    import sae_lens

    from tl_distill_floor.sources.sae_formats.building import inference_form

    sae = without_compilation(sae)
    if not isinstance(sae, sae_lens.SAE):
        raise InputError(
            f"the SAE is of type {type(sae).__name__}, expected a SAELens SAE; give one, a name such as"
            " release:sae_id, or a path"
        )
    inference_sae = inference_form(sae) if isinstance(sae, sae_lens.TrainingSAE) else sae
    return checked_source(inference_sae, f"in-memory ({inference_sae.cfg.architecture()})")


def _load(load: Callable[..., Any], *args: object, name: str, options: _LoadOptions) -> Any:
    """Call one of SAELens's loaders without its warnings, and turn its errors into an InputError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load(*args, device=options.device, dtype=options.dtype).eval().requires_grad_(False)
    except Exception as error:  # a foreign file or the network can raise anything
        raise load_error(name, error) from error
