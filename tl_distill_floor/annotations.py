"""Types of the public functions' arguments: protocols for models and SAEs, and the choices of each option.

Nothing is imported from TransformerLens, SAELens or torch, so that importing the package stays fast.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

# The choices of each option.
CostMethod: TypeAlias = Literal["fisher", "energy", "ablation"]
CostUnit: TypeAlias = Literal["mse", "nats"]
FeaturePredictor: TypeAlias = Literal["theorem", "independent", "simulated"]
Predictor: TypeAlias = Literal["theorem", "independent", "simulated", "head"]
Dtype: TypeAlias = Literal["fp32", "bf16"]
SaeArchitecture: TypeAlias = Literal["batchtopk", "topk"]
StudentStart: TypeAlias = Literal["random", "teacher-slice", "svd"]
OptimizerName: TypeAlias = Literal["muon", "adamw"]
ScheduleName: TypeAlias = Literal["constant", "cosine"]
Divergence: TypeAlias = Literal["forward-kl", "reverse-kl"]
StudentStatus: TypeAlias = Literal["saturated", "under-trained", "diverged"]
LossUnit: TypeAlias = Literal["nats", "bits"]
Verdict: TypeAlias = Literal[
    "capacity-limited", "under-trained", "stalled above the expected loss", "below what the width allows", "not known"
]
PlanRule: TypeAlias = Literal["narrowest", "widest"]
MemoryDtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
Pooling: TypeAlias = Literal["mean", "last"]
LabelLevel: TypeAlias = Literal["text", "word"]
ProbedActivation: TypeAlias = Literal["teacher", "student", "kept", "bottleneck"]
FeatureSelection: TypeAlias = Literal["mean-difference", "correlation"]
FigureFormat: TypeAlias = Literal["svg", "png", "pdf"]


@runtime_checkable
class HookedModel(Protocol):
    """A TransformerLens model with hook points: a HookedTransformer or a TransformerBridge."""

    cfg: Any
    tokenizer: Any
    if TYPE_CHECKING:
        # `isinstance` reads every attribute of a protocol, and a TransformerBridge builds this one on each access.
        hook_dict: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run a forward pass."""
        ...

    def parameters(self) -> Iterator[Any]:
        """Yield the weights."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield the weights with their names."""
        ...


@runtime_checkable
class LoadedTeacher(Protocol):
    """A `Teacher`, as `load_teacher` returns it."""

    @property
    def model(self) -> HookedModel:
        """Model with hook points."""
        ...

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def loading(self) -> dict[str, Any]:
        """Class and options with which the model was loaded."""
        ...


@dataclass(frozen=True)
class FormattedSae:
    """The name of an SAE's file with what its keys mean, as `load_sae(spec, sae_format=...)` takes them."""

    spec: str | Path
    """Path, or a Hub repository."""
    sae_format: str
    """Name of a format, or a JSON object; see `load_sae`."""


@runtime_checkable
class SaeModule(Protocol):
    """A SAELens SAE: an encoder, a decoder and a configuration."""

    cfg: Any
    if TYPE_CHECKING:
        # Weights of a module are resolved in __getattr__, which isinstance does not see since Python 3.12.
        W_dec: Any
        hook_dict: Any
    device: Any
    dtype: Any

    def encode(self, x: Any) -> Any:
        """Return the features' activations [..., feature]."""
        ...

    def decode(self, feature_acts: Any) -> Any:
        """Return the reconstructed activation [..., d_in]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the weights by name."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """A Hugging Face tokenizer."""

    if TYPE_CHECKING:
        # transformers resolves it in __getattr__, which isinstance does not see since Python 3.12.
        bos_token_id: Any

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Return the text of token ids."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Tokenize text."""
        ...


@runtime_checkable
class TokenStore(Protocol):
    """A SAELens `ActivationsStore`."""

    context_size: int

    def get_batch_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Return a batch of token ids [batch, position]."""
        ...


@runtime_checkable
class LoadedLabels(Protocol):
    """Labelled text, as `load_labels` returns it."""

    @property
    def name(self) -> str:
        """Name of the source."""
        ...

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts, one for each row."""
        ...


# What the public functions accept. Their loaders check it themselves, with messages that say what to type; so at run
# time these are `Any`, and the tests' type checks do not come first.
if TYPE_CHECKING:
    TeacherLike: TypeAlias = str | Path | HookedModel | LoadedTeacher
    SaeLike: TypeAlias = str | Path | SaeModule | FormattedSae
    TextLike: TypeAlias = str | Path | npt.ArrayLike | TokenStore | Iterable[object]
    LabelsLike: TypeAlias = str | Path | Iterable[Mapping[str, Any]] | LoadedLabels
else:
    TeacherLike = Any
    """A name, a directory, a `.gguf` file, a model with hook points, or the result of `load_teacher`."""
    SaeLike = Any
    """`release:sae_id`, a Hub repository, a path, a `FormattedSae`, or a SAELens SAE in memory."""
    TextLike = Any
    """A file, a dataset or its name, texts, token ids, or a SAELens `ActivationsStore`; see `load_text`."""
    LabelsLike = Any
    """A file of rows, a dataset or its name, rows in memory, or the result of `load_labels`."""
ArrayLike: TypeAlias = npt.ArrayLike
"""A number, a sequence of numbers, a NumPy array or a torch tensor."""
if TYPE_CHECKING:
    WidthsLike: TypeAlias = Sequence[int] | Sequence[float] | npt.NDArray[np.generic] | torch.Tensor
else:
    WidthsLike = Any
    """Student widths in dimensions: a list, a NumPy array or a torch tensor."""
ProgressCallback: TypeAlias = Callable[[int, int], object]
"""Called with the amount done and the total."""
ProgressMessageCallback: TypeAlias = Callable[[int, int, str], object]
"""Called with the amount done, the total, and a short message."""
