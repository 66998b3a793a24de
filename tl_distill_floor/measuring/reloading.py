"""Load again the teacher and the SAE that statistics were measured with."""

from tl_distill_floor.annotations import Dtype, SaeLike
from tl_distill_floor.errors import InputError
from tl_distill_floor.results.feature_stats import FeatureStats
from tl_distill_floor.sources.devices import TORCH_DTYPES
from tl_distill_floor.sources.saes import SaeSource, load_sae, sae_digest


def load_measured_sae(stats: FeatureStats, sae: SaeLike | None, device: str) -> SaeSource:
    """Load an SAE, and check that it is the one that was measured.

    Args:
        stats: the statistics.
        sae: see `load_sae`; None takes the SAE that is known for the teacher and its layer.
        device: torch device of an SAE that is loaded here.

    Raises:
        InputError: the SAE cannot be loaded, or is another one.
    """
    from sae_lens.util import extract_layer_from_tlens_hook_name

    layer = extract_layer_from_tlens_hook_name(stats.hook_name)
    source = load_sae(sae, model_name=stats.model_name, layer=layer, device=device)
    measured = stats.settings.get("sae")
    if measured is not None and measured != sae_digest(source.sae):
        raise InputError(
            f"the prediction was made with the SAE {stats.sae_name}, and this SAE is another; name that with --sae"
        )
    return source


def measured_dtype(stats: FeatureStats) -> Dtype:
    """Return the dtype in which the teacher was measured."""
    loading = stats.settings.get("teacher")
    return "bf16" if isinstance(loading, dict) and loading.get("dtype") == TORCH_DTYPES["bf16"] else "fp32"
