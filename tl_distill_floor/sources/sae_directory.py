"""List the SAEs that are known for a model: those of SAELens's directory, of the paper, and the embedded one.

Nothing is downloaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from shlex import quote
from typing import Any, NoReturn, Protocol, runtime_checkable

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.model_names import TINY_PROSE, base_name, check_layer, check_model_name

PAPER_MODEL = "EleutherAI/pythia-410m"
PAPER_REPOSITORIES = (  # Sarkar and Deka 2026, arXiv 2604.04037: 32,768 features at each of 24 layers
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-adaptive",
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-3e-4-fixed",
    "nileshsarkar-ai/pythia-410m-saes-x32-l1-8e-5-fixed",
)
PAPER_LAYERS = 24
"""Layers with an SAE in each of these repositories."""
EMBEDDED_SAE, EMBEDDED_HOOK = f"{TINY_PROSE}-sae", "blocks.1.hook_resid_post"
"""The SAE that comes with the package, and its hook point."""
OTHER_MODELS = {"gemma-scope-9b-it-res": "gemma-2-9b-it"}
"""Model of each release for which SAELens's directory names another one than the files of its SAEs."""
UNSUPPORTED_ARCHITECTURES = {
    "transcoder": "it reads one hook point and writes another, so its features do not add up to one activation",
    "temporal": "its codes depend on the earlier tokens of a sequence",
    "batchtopk": "its codes depend on the other tokens of a batch; load it with sae_lens.TrainingSAE.load_from_disk,"
    " write its inference form with sae.save_inference_model(path) and give that path",
}
"""Why an architecture is refused, by a part of its name."""
_FOLD = "it is not folded into the weights; first call sae.fold_activation_"
_VARYING = "the scale of a feature then changes with every token; give an SAE trained without it"
NORMALISATION_ADVICE = {
    "expected_average_only_in": f"{_FOLD}norm_scaling_factor(scaling_factor)",
    "covariance_whitening": f"{_FOLD}whitening(mean, whitening, unwhitening)",
    "layer_norm": _VARYING,
    "constant_norm_rescale": _VARYING,
}
"""Why a value of `normalize_activations` is refused, and what to do."""
MAX_LISTED = 12
"""SAEs that an error message lists."""
_HOOK_IN_ID = re.compile(r"^blocks\.(\d+)\.(?:attn\.)?(hook_(?:resid_(?:pre|mid|post)|mlp_out|attn_out|z))")
"""Layer and hook point in an SAE's id."""
_LAYER_IN_ID = re.compile(r"layers?[_.]?(\d+)|^l(\d+)[arm]_|^blocks\.(\d+)\.")
"""Layer in an SAE's id."""
_HOOK_BY_PATH = {  # for repositories whose ids name no hook point, as SAELens's own loaders read them
    r"resid_post|-res/|SAE-Res-|SAE-l\d+|L\d+R(?:-|$)": "hook_resid_post",
    r"mlp_out|-mlp/|L\d+M-": "hook_mlp_out",
    r"attn_out|-att/": "attn.hook_z",
    r"L\d+A-": "hook_attn_out",
}


@runtime_checkable
class SaeRelease(Protocol):
    """A release in SAELens's directory."""

    model: str
    repo_id: str
    conversion_func: str | None
    saes_map: dict[str, str]
    """Path in the repository of each SAE."""
    expected_l0: dict[str, float]
    neuronpedia_id: dict[str, str]
    config_overrides: dict[str, Any] | None


@dataclass(frozen=True)
class SaeEntry:
    """An SAE that is known for a model."""

    spec: str
    """Name that `load_sae` and `--sae` take."""
    layer: int | None
    """Layer, counted from 0; None if the name does not tell."""
    hook_name: str | None
    """Hook point by its HookedTransformer name; None if the name does not tell."""
    expected_l0: float | None
    """Active features per token; None if the directory does not say."""
    neuronpedia_id: str | None


def find_saes(model_name: str, layer: int | None = None) -> list[SaeEntry]:
    """List the SAEs that are known for a model, without those that `load_sae` would refuse.

    No network is needed: the list holds SAELens's directory, the paper's SAEs of Pythia-410M, and the embedded SAE of
    `tiny-prose`.

    Args:
        model_name: any name of the model: its TransformerLens name, or its Hugging Face name with or without owner.
        layer: the only layer to list, counted from 0; all layers if None.

    Returns:
        The SAEs by layer; at each layer those of the residual stream come first. Empty if none is known, also for an
        unknown model.

    Example:
        >>> find_saes("gpt2-small", layer=8)[0].spec
        'gpt2-small-res-jb:blocks.8.hook_resid_pre'
    """
    name = base_name(model_name)
    entries = _paper_entries() if name == base_name(PAPER_MODEL) else []
    is_embedded = name == TINY_PROSE
    if is_embedded:
        entries.append(SaeEntry(EMBEDDED_SAE, layer_from_id(EMBEDDED_HOOK), EMBEDDED_HOOK, None, None))
    # SAELens knows no SAE of the embedded teacher, and reading its directory takes over a second.
    for release, lookup in ({} if is_embedded else sae_directory()).items():
        if base_name(OTHER_MODELS.get(release, lookup.model)) == name:
            entries += [
                directory_entry(release, lookup, sae_id)
                for sae_id in lookup.saes_map
                if refusal_reason(release, lookup, sae_id) is None
            ]
    entries = [entry for entry in entries if layer in (None, entry.layer)]
    return sorted(entries, key=lambda entry: (*_layer_order(entry.layer), "resid" not in (entry.hook_name or "")))


def sae_directory() -> Mapping[str, SaeRelease]:
    """Return SAELens's releases by name, read from a file of its package."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return dict(get_pretrained_saes_directory())


def directory_entry(release: str, lookup: SaeRelease, sae_id: str) -> SaeEntry:
    """Return the entry of an SAE in SAELens's directory.

    Args:
        release: name of the release.
        lookup: the release, a value of `sae_directory()`.
        sae_id: name of the SAE in the release.
    """
    # SAELens fills in 0.0 where the number of active features is not known.
    expected_l0 = float(lookup.expected_l0.get(sae_id) or 0) or None
    hook_name = _hook_name_from_id(lookup, sae_id)
    return SaeEntry(
        f"{release}:{sae_id}", layer_from_id(sae_id), hook_name, expected_l0, lookup.neuronpedia_id.get(sae_id)
    )


def layer_from_id(sae_id: str) -> int | None:
    """Return the layer that an SAE's id or path names; None if it names none."""
    match = _LAYER_IN_ID.search(sae_id)
    return None if match is None else int(match[match.lastindex or 0])


def refusal_reason(release: str, lookup: SaeRelease, sae_id: str) -> str | None:
    """Return why `load_sae` refuses an SAE of the directory, as far as the directory tells; None if it does not."""
    path = f"{lookup.conversion_func} {release}/{lookup.saes_map[sae_id]}"
    architecture = re.search(r"transcoder|temporal|clt", path)
    if architecture is not None:
        name = architecture[0].replace("clt", "transcoder")
        return f"is a {name} SAE, and {UNSUPPORTED_ARCHITECTURES[name]}"
    normalisation = (lookup.config_overrides or {}).get("normalize_activations", "none")
    advice = NORMALISATION_ADVICE.get(str(normalisation))
    return None if advice is None else f"normalises activations at run time; {advice}"


def choose_known_sae(model_name: str | None, layer: int | None) -> str:
    """Return the name of the only SAE known for a model at a layer; of the paper's three, the adaptive one.

    Raises:
        InputError: there is no such model or layer, no SAE is known for it, or several are.
    """
    if model_name is None:
        raise InputError("no SAE was named; give one with --sae, or the name of a model and a layer")
    entries = find_saes(model_name, layer)
    if not entries:
        raise_no_known_sae(model_name, layer)
    if layer is not None and entries[0].spec.startswith(PAPER_REPOSITORIES[0]):
        return entries[0].spec
    holder = f"{model_name}{_at_layer(layer)}"
    return require_single_sae([entry.spec for entry in entries], holder, layer, model_name)


def raise_no_known_sae(model_name: str, layer: int | None) -> NoReturn:
    """Raise an InputError that says why no SAE is known for a model at a layer.

    Raises:
        InputError: there is no such model; or it has no such layer; or no SAE is known, with how to train one.
    """
    check_model_name(model_name)
    if layer is not None:
        check_layer(model_name, layer)
    layers = sorted({entry.layer for entry in find_saes(model_name) if entry.layer is not None})
    only = f", only {_name_layers(layers)}; set --layer to one of these," if layers else ";"
    train = f"tl-floor train-sae {quote(model_name)} --layer {'L' if layer is None else layer}"
    raise InputError(
        f"no SAE is known for {model_name}{_at_layer(layer)}{only} train one with {train}, give one with --sae, or"
        f" estimate the least loss without one: tl-floor measure {quote(model_name)} --no-sae (head_floor in Python)"
    )


def require_single_sae(specs: Sequence[str], holder: str, layer: int | None, model_name: str = "MODEL") -> str:
    """Return the only one of several names of SAEs.

    Args:
        specs: names of the SAEs.
        holder: what the SAEs belong to, for the message: a model, a release or a repository.
        layer: the layer that the user gave, if any.
        model_name: name of the model, for the message.

    Raises:
        InputError: there are several.
    """
    if len(specs) == 1:
        return specs[0]
    advice = "give one of them with --sae" + (" or a layer with --layer" if layer is None else "")
    n_more = len(specs) - MAX_LISTED
    more = f" and {n_more} more: tl-floor saes {quote(model_name)}" if n_more > 0 else ""
    raise InputError(f"{holder} has {len(specs)} SAEs, {advice}: {', '.join(map(quote, specs[:MAX_LISTED]))}{more}")


def _paper_entries() -> list[SaeEntry]:
    return [
        SaeEntry(f"{repository}:sae_layer{layer:02d}_final.pt", layer, f"blocks.{layer}.hook_resid_post", None, None)
        for layer in range(PAPER_LAYERS)
        for repository in PAPER_REPOSITORIES
    ]


def _layer_order(layer: int | None) -> tuple[bool, int]:
    """Return a sort key: by layer, unknown layers last."""
    return layer is None, layer or 0


def _at_layer(layer: int | None) -> str:
    return "" if layer is None else f" at layer {layer}"


def _name_layers(layers: Sequence[int]) -> str:
    """Return "at layer 3", "at layers 0 to 23" or "at layers 2, 5, 7" for layers in ascending order."""
    if len(layers) == 1:
        return f"at layer {layers[0]}"
    if list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"at layers {layers[0]} to {layers[-1]}"
    return f"at layers {', '.join(map(str, layers))}"


def _hook_name_from_id(lookup: SaeRelease, sae_id: str) -> str | None:
    """Return the hook point that an SAE's id or path names; None if it names none."""
    if named := _HOOK_IN_ID.match(sae_id):
        return f"blocks.{named[1]}.{named[2].replace('hook_z', 'attn.hook_z')}"
    layer, path = layer_from_id(sae_id), f"{lookup.repo_id}/{lookup.saes_map[sae_id]}"
    hook = next((hook for pattern, hook in _HOOK_BY_PATH.items() if re.search(pattern, path)), None)
    return None if layer is None or hook is None else f"blocks.{layer}.{hook}"
