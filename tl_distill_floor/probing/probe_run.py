"""What survives a width: probes of the teacher, of what a width is expected to hold of it, and of real students."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from tl_distill_floor.distilling.layers import is_residual, layer_of, student_hook
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.encoding import encode_tokens
from tl_distill_floor.measuring.token_stream import device_of
from tl_distill_floor.predicting.simulation import Hidden, hidden_states
from tl_distill_floor.probing.decodability import decodability
from tl_distill_floor.probing.items import Sequences, sequences_of
from tl_distill_floor.probing.probe import Readout, collect, fit, result_of
from tl_distill_floor.results.probes import ProbeResult, Probes
from tl_distill_floor.results.student import StudentResult
from tl_distill_floor.sources.devices import TORCH_DTYPES
from tl_distill_floor.sources.labels import load_labels
from tl_distill_floor.sources.saes import load_sae, sae_digest
from tl_distill_floor.sources.teachers import Teacher, load_teacher

if TYPE_CHECKING:
    from tl_distill_floor.results.floor_prediction import FloorPrediction

Report = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is being done."""


@dataclass(frozen=True)
class ProbeConfig:
    """How probes are fitted."""

    pool: str = "mean"
    """For labels of texts: "mean" or "last"."""
    per_class: int = 1000
    """Items of a class at the most."""
    n_splits: int = 5
    """Of the documents, each with probes of its own."""
    bottleneck_steps: int = 1000
    """Of the bottleneck students; 0 trains none."""
    n_feature_tokens: int = 60_000
    """Tokens on which features are decoded; 0 decodes none."""
    seed: int = 0
    batch_size: int = 16
    """Texts a batch."""

    def __post_init__(self) -> None:
        if self.bottleneck_steps == 1 or min(self.bottleneck_steps, self.n_feature_tokens) < 0:
            raise InputError("the steps must be 0 or at least 2, and the tokens at least 0")
        if self.batch_size < 1 or self.n_splits < 1:
            raise InputError("a batch must be at least 1 text, and the splits at least 1")


def probe_run(
    floor: "FloorPrediction",
    teacher: Any = None,
    sae: Any = None,
    labelled: Any = None,
    *,
    labels: Sequence[str] | None = None,
    students: Sequence[StudentResult] = (),
    widths: Sequence[int] | None = None,
    text: Any = None,
    config: ProbeConfig | None = None,
    device: str = "cpu",
    progress: Report | None = None,
) -> Probes:
    """Probe the teacher, what each width is expected to hold of its activation, and students that were distilled.

    Args:
        floor: of the teacher; says which features each width keeps.
        teacher: see `load_teacher`; the one that was measured when left out.
        sae: that the floor was measured with; see `load_sae`.
        labelled, labels: see `load_labels`.
        students: saved ones, probed after the layer that lies as deep as the teacher's hook point.
        widths: of the forecasts; those of the students, or of the prediction where there are none, when left out.
        text: on which features are decoded; see `load_text`.
        config: how probes are fitted.
        device: torch device of what is loaded here.
        progress: see `Report`.

    Raises:
        InputError: something cannot be loaded, another SAE than the floor's, or labels that cannot be probed.
    """
    config, stats = config or ProbeConfig(), floor.stats
    loaded_sae = load_sae(sae, model_name=stats.model_name, layer=layer_of(stats.hook_name), device=device)
    measured = stats.settings.get("sae")
    if measured is not None and measured != sae_digest(loaded_sae.sae):
        raise InputError(f"the prediction is of {stats.sae_name}, this SAE is another; name that with --sae")
    given, kwargs = teacher or stats.model_name, loaded_sae.model_kwargs
    loaded = load_teacher(given, device=device, dtype=_dtype(stats.settings), model_kwargs=kwargs)
    saved = [student for student in students if student.path is not None and student.status != "diverged"]
    asked = sorted(set(widths or [student.width for student in saved] or floor.widths.tolist()))
    if asked[0] < 1:
        raise InputError(f"a width must be at least 1 dimension, got {asked[0]}")
    found, prepend_bos = load_labels(labelled, labels), loaded_sae.prepend_bos is not False
    sequences = sequences_of(
        found,
        loaded.model.tokenizer,
        pool=config.pool,
        context_size=int(stats.settings.get("context_size", min(256, loaded.model.cfg.n_ctx))),
        prepend_bos=prepend_bos,
        per_class=config.per_class,
        seed=config.seed,
    )
    run = _Run(floor, loaded, loaded_sae.sae, sequences, config, saved, asked, progress)
    # First what may turn out to be too little text: probes take longer.
    features = decodability(
        floor, loaded, loaded_sae.sae, saved, text, n_tokens=config.n_feature_tokens, prepend_bos=prepend_bos,
        seed=config.seed, batch_size=config.batch_size, report=run.step,
    ) if config.n_feature_tokens else []  # fmt: skip
    results = [*run.of_teacher(), *(result for student in saved for result in run.of_student(student))]
    return Probes(
        teacher=loaded.name,
        hook_name=stats.hook_name,
        labelled=found.name,
        stats=stats.digest(),
        results=tuple(results),
        features=tuple(features),
        settings=dataclasses.asdict(config),
        warnings=(*sequences.warnings, *_warnings(students, stats.hook_name)),
    )


def _dtype(settings: dict[str, Any]) -> str:
    """What the teacher was measured in."""
    loading = settings.get("teacher")
    return "bf16" if isinstance(loading, dict) and loading.get("dtype") == TORCH_DTYPES["bf16"] else "fp32"


def _warnings(students: Sequence[StudentResult], hook_name: str) -> list[str]:
    diverged = [student.name for student in students if student.status == "diverged"]
    found = [f"diverged, and not probed: {', '.join(diverged)}"] if diverged else []
    if students and not is_residual(hook_name):
        found.append(f"students are probed at their residual stream, the teacher at {hook_name}")
    return found


class _Run:
    """One run of probes, and how far it is."""

    def __init__(
        self,
        floor: "FloorPrediction",
        teacher: Teacher,
        sae: Any,
        sequences: Sequences,
        config: ProbeConfig,
        students: Sequence[StudentResult],
        widths: Sequence[int],
        progress: Report | None,
    ) -> None:
        self.floor, self.teacher, self.sae, self.sequences, self.config = floor, teacher, sae, sequences, config
        self.widths, self._progress, self._done = widths, progress, 0
        layers = int(teacher.model.cfg.n_layers)
        self._hooks = {s.name: student_hook(floor.stats.hook_name, layers, s.depth) for s in students}
        n_tasks, forecasts = len(sequences.items), 2 if self._has_bottlenecks else 1
        self._total = n_tasks * (1 + len(students) + forecasts * len(widths)) + self._has_bottlenecks
        self._total += (1 + len(students)) * bool(config.n_feature_tokens)

    @property
    def _has_bottlenecks(self) -> bool:
        return self.floor.stats.codes is not None and self.config.bottleneck_steps > 0

    def step(self, doing: str) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, max(self._total, self._done), doing)

    def of_teacher(self) -> list[ProbeResult]:
        """Its own activation, and what the widths hold of that."""
        hidden: list[Hidden] = []
        if self._has_bottlenecks:
            steps, min_count = self.config.bottleneck_steps, self.floor.min_count
            device = str(device_of(self.teacher.model))
            hidden = hidden_states(self.floor.stats, self.widths, steps=steps, min_count=min_count, device=device)
            self.step("bottlenecks")
        hook = self.floor.stats.hook_name
        kept = {width: torch.from_numpy(self.floor.kept(width)) for width in self.widths}
        held = dict(zip(self.widths, hidden, strict=bool(hidden)))
        readout = forecasts(self.sae, self.floor.stats.d_model, int(self.teacher.model.cfg.n_heads), kept, held)
        found = collect(self.teacher.model, hook, self.sequences, readout, batch_size=self.config.batch_size)
        results = self._fitted(found.pop("activation"), self.teacher.name, "teacher", None, hook)
        for name, activations in found.items():
            kind, _, width = name.partition(" ")
            results += self._fitted(activations, f"{kind} at {width}", kind, int(width), hook)
        return results

    def of_student(self, student: StudentResult) -> list[ProbeResult]:
        model = load_teacher(student.path, device=str(device_of(self.teacher.model))).model
        hook = self._hooks[student.name]
        found = collect(model, hook, self.sequences, batch_size=self.config.batch_size)["activation"]
        return self._fitted(found, student.name, "student", student.width, hook)

    def _fitted(
        self, activations: Sequence[Any], subject: str, kind: str, width: int | None, hook: str
    ) -> list[ProbeResult]:
        results = []
        for x, items in zip(activations, self.sequences.items, strict=True):
            scores = fit(x, items, splits=self.config.n_splits, seed=self.config.seed)
            results.append(result_of(items, scores, subject, kind, width, hook))
            self.step(f"{items.task} in {subject}")
        return results


def forecasts(
    sae: Any, d_model: int, n_heads: int, kept: Mapping[int, Bool[Tensor, " feature"]], hidden: Mapping[int, Hidden]
) -> Readout:
    """Of activations: themselves, what is rebuilt from the features kept, and what bottlenecks hold.

    Args:
        sae: of the hook point.
        d_model: dimensions of the activation.
        n_heads: of the teacher, for an SAE that joins its heads.
        kept: by width, the features that it is expected to hold.
        hidden: by width, what the bottleneck student holds of the codes.
    """
    decoder = sae.W_dec.detach().float()

    def with_codes(activation: Tensor) -> Tensor:
        return torch.cat([activation, encode_tokens(sae, activation, n_heads).to(activation.device)], dim=1)

    def views(held: Tensor) -> dict[str, Tensor]:
        activation, codes = held[:, :d_model], held[:, d_model:].to(decoder.device)
        rebuilt = {f"kept {width}": (codes * mask.to(codes.device)) @ decoder for width, mask in kept.items()}
        states = {f"bottleneck {width}": holds(codes) for width, holds in hidden.items()}
        return {"activation": activation, **rebuilt, **states}

    return Readout(with_codes, views)
