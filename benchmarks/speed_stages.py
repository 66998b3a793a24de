"""The stages that `speed.py` times: our function, the least work that it has to do, and other tools' functions."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from distill_speed import make_plain_step
from speed_workloads import BATCH_SIZE, Workload
from synthetic_data import CONTEXT, prediction_with_contexts, random_codes

from tl_distill_floor import independent_floor, load_sae, load_teacher, load_text, measure, probe
from tl_distill_floor.annotations import CostMethod, Dtype, StudentStart
from tl_distill_floor.display.report_sections import report_figures, report_html
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.distilling.training.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.training.sweep import Sweep
from tl_distill_floor.distilling.training.text_split import read_text_split
from tl_distill_floor.distilling.training.training_step import train_step
from tl_distill_floor.measuring.active_codes import tokens_at_once
from tl_distill_floor.measuring.direct_logits import LOGITS_AT_ONCE, find_promoted_tokens
from tl_distill_floor.measuring.hooks import get_hook_point
from tl_distill_floor.measuring.replacement import differentiable_forward
from tl_distill_floor.measuring.teacher_backbone import teacher_backbone
from tl_distill_floor.predicting import bottleneck
from tl_distill_floor.predicting.progress import StepCounter
from tl_distill_floor.predicting.simulation import TOKENS_PER_STEP
from tl_distill_floor.predicting.sparse_batches import training_batches
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.teacher import Teacher


class Stage(NamedTuple):
    """One stage of the package, and what it is compared with."""

    unit: str
    amount: float
    """Number of units that one call processes."""
    ours: Callable[[], object]
    limit: Callable[[], object]
    """The least work that the stage has to do."""
    limit_is: str
    """Description of the limit."""
    peers: Mapping[str, Callable[[], object]] = MappingProxyType({})
    """Other tools, by name."""


def load() -> Stage:
    """Return the stage that loads the embedded teacher, SAE and text."""
    from sae_lens import SAE
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assets = Path(str(files("tl_distill_floor") / "assets"))

    def ours() -> None:
        model = load_teacher("tiny-prose").model
        load_sae(None, model_name="tiny-prose")
        next(iter(load_text(None, model.tokenizer).read()))

    def limit() -> None:
        AutoModelForCausalLM.from_pretrained(assets / "tiny-prose", dtype=torch.float32)
        AutoTokenizer.from_pretrained(assets / "tiny-prose")
        SAE.load_from_disk(assets / "tiny-prose-sae")

    return Stage("loads/s", 1, ours, limit, "the loading functions of transformers and SAELens, on the same files")


def measure_energy(workload: Workload) -> Stage:
    """Return the stage that measures costs in squared error."""
    peers = {
        "SAELens run_evals": run_evals,
        "SAELens ActivationsStore": run_activations_store,
    }
    if workload.plain is not None:
        peers["transformers + torch"] = run_plain_transformers
    return _measurement(
        workload,
        "energy",
        forward_and_encode,
        "the forward pass to the hook point, and sae.encode",
        {name: partial(peer, workload) for name, peer in peers.items()},
    )


def measure_fisher(workload: Workload) -> Stage:
    """Return the stage that measures costs in nats."""
    return _measurement(
        workload,
        "fisher",
        forward_backward_and_encode,
        "the forward pass, a backward pass to the hook point, and sae.encode",
    )


def _measurement(
    workload: Workload,
    cost: CostMethod,
    limit: Callable[[Workload], object],
    limit_is: str,
    peers: Mapping[str, Callable[[], object]] = MappingProxyType({}),
) -> Stage:
    """Return the stage that measures one kind of cost."""
    model, sae, ids = workload.model, workload.sae, workload.ids
    # `force`, since a random SAE does not fit the activations.
    options = {
        "cost": cost,
        "n_tokens": ids.numel(),
        "n_cost_tokens": ids.numel(),
        "batch_size": workload.batch_size,
        "force": True,
    }
    ours = partial(measure, model, sae, ids, **options)
    return Stage("tokens/s", ids.numel(), ours, partial(limit, workload), limit_is, peers)


def promoted(workload: Workload) -> Stage:
    """Return the stage that finds the tokens that each feature promotes; a prediction does so for a few features."""
    model, decoder = workload.model, workload.sae.W_dec
    weight = next(model.unembed.parameters()).detach()
    unembedding = weight.T if weight.shape[0] == model.cfg.d_vocab else weight
    chunks = decoder.detach().split(max(1, LOGITS_AT_ONCE // model.cfg.d_vocab))

    def limit() -> None:
        for chunk in chunks:
            chunk @ unembedding

    return Stage(
        "features/s",
        workload.sae.cfg.d_sae,
        lambda: find_promoted_tokens(model, decoder),
        limit,
        "the product of decoder and unembedding",
    )


def forward_and_encode(workload: Workload) -> None:
    """Run the forward pass to the hook point, and the SAE's encoder."""
    for_each_activation(workload, workload.ids, encode)


def for_each_activation(
    workload: Workload, ids: torch.Tensor, function: Callable[[Workload, torch.Tensor], object]
) -> None:
    """Run forward passes that stop at the hook point, and call a function with the activation of each batch."""

    class StopError(Exception):
        pass

    caught: list[torch.Tensor] = []

    def catch(_module: Any, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise StopError

    handle = get_hook_point(workload.model, workload.hook_name).register_forward_hook(catch)
    try:
        with torch.no_grad():
            for batch in ids.split(workload.batch_size):
                try:
                    workload.model(batch.to(workload.device))
                except StopError:
                    function(workload, caught.pop())
    finally:
        handle.remove()


def encode(workload: Workload, acts: torch.Tensor) -> None:
    """Encode as many tokens at a time as the package does: the codes of a full batch do not fit in a CPU's cache."""
    for chunk in acts.flatten(0, 1).split(tokens_at_once(workload.sae.cfg.d_sae, acts.device)):
        workload.sae.encode(chunk)


def forward_backward_and_encode(workload: Workload) -> None:
    """Run the forward pass, a backward pass to the hook point, and the SAE's encoder."""
    with differentiable_forward(workload.model, [workload.hook_name]) as run:
        for batch in workload.batches():
            logits, acts = run(batch)
            torch.autograd.grad(logits, acts, torch.ones_like(logits))
            with torch.no_grad():
                encode(workload, acts[0].detach())


def run_evals(workload: Workload) -> None:
    """Compute sparsity, variance and feature densities with SAELens's `run_evals`."""
    from sae_lens.evals import EvalConfig
    from sae_lens.evals import run_evals as evaluate
    from sae_lens.training.activation_scaler import ActivationScaler

    config = EvalConfig(
        batch_size_prompts=workload.batch_size,
        n_eval_sparsity_variance_batches=len(workload.ids) // workload.batch_size,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    evaluate(workload.sae, _activations_store(workload), workload.model, ActivationScaler(), config)


def _activations_store(workload: Workload) -> Any:
    """Return a SAELens store that reads the workload's token ids."""
    from datasets import Dataset
    from sae_lens import ActivationsStore

    rows = Dataset.from_dict({"input_ids": workload.ids.numpy()}).with_format("numpy")
    return ActivationsStore.from_sae(
        workload.model, workload.sae, rows, streaming=False, context_size=CONTEXT, total_tokens=1,
        store_batch_size_prompts=workload.batch_size, device=str(workload.device),
    )  # fmt: skip


def run_activations_store(workload: Workload) -> None:
    """Add up the codes of activations from SAELens's store."""
    store, sums = _activations_store(workload), DenseSums(workload.sae.cfg.d_sae, workload.device)
    with torch.no_grad():
        for _ in range(len(workload.ids) // workload.batch_size):
            acts = store.get_activations(store.get_batch_tokens())
            sums.add(workload.sae.encode(acts.flatten(0, -2)))


def run_plain_transformers(workload: Workload) -> None:
    """Add up the codes of a hidden state of transformers, which computes all layers."""
    layer = int(workload.hook_name.split(".")[1])
    sums = DenseSums(workload.sae.cfg.d_sae, workload.device)
    with torch.no_grad():
        for batch in workload.batches():
            hidden = workload.plain.base_model(batch, output_hidden_states=True).hidden_states[layer + 1]
            sums.add(workload.sae.encode(hidden.flatten(0, 1)))


class DenseSums:
    """Firing counts, sums and sums of squares of dense codes, as a short script would compute them."""

    def __init__(self, n_features: int, device: torch.device) -> None:
        self.count, self.sum, self.square = (torch.zeros(n_features, device=device) for _ in range(3))

    def add(self, codes: torch.Tensor) -> None:
        """Add codes [token, feature]."""
        self.count += (codes > 0).sum(0)
        self.sum += codes.sum(0)
        self.square += codes.square().sum(0)


def simulate(
    n_features: int, width: int, l0: int, steps: int, device: str = "cpu", n_tokens: int = 8 * TOKENS_PER_STEP
) -> Stage:
    """Return the stage that trains a bottleneck student on random codes."""
    codes = random_codes(n_features, l0, n_tokens)
    weight, amplitude = (torch.ones(n_features, device=device) for _ in range(2))
    ours = partial(
        bottleneck.train, codes, weight, amplitude, [width],
        steps=steps, batch_size=TOKENS_PER_STEP, seed=0, counter=StepCounter(None, 1),
    )  # fmt: skip
    dtype = bottleneck.gradient_dtype(weight.device)
    batch = next(training_batches(codes, np.ones(codes.n_tokens), weight, TOKENS_PER_STEP, 0, dtype))
    n_steps = bottleneck.n_steps_per_width(steps)

    def limit() -> None:
        student = bottleneck.BottleneckTrainer(width, weight, amplitude, 0, 1.0)
        for _ in range(n_steps):
            student.step(batch, 1.0)

    def dense() -> None:
        student = bottleneck.BottleneckTrainer(width, weight, amplitude, 0, 1.0)
        x = torch.zeros(batch.codes.n_tokens, n_features, device=device)
        x[batch.token, batch.codes.feature] = batch.codes.value
        for _ in range(n_steps):
            gradient = dense_gradient(student.model, x, weight)
            student.W.grad, student.scaled_b.grad = gradient.W, gradient.b
            student.optimizer.step()

    return Stage(
        "tokens/s",
        n_steps * TOKENS_PER_STEP,
        ours,
        limit,
        "gradients and Adam on a batch that is already in memory",
        {"dense codes": dense},
    )


@torch.no_grad()
def dense_gradient(model: bottleneck.Bottleneck, x: torch.Tensor, weight: torch.Tensor) -> bottleneck.Bottleneck:
    """Return the gradient of a bottleneck student with respect to W and b, from dense codes x [token, feature]."""
    hidden = x @ model.W
    output = model.output(hidden)
    fired = output > 0
    error = output.sub_(x).mul_(weight * (2.0 / len(x))).mul_(fired)
    return bottleneck.Bottleneck(error.T @ hidden + x.T @ (error @ model.W), error.sum(0))


def allocate(n_features: int = 10**6, n_widths: int = 100) -> Stage:
    """Return the stage that computes the floors of many widths by water-filling."""
    random = np.random.default_rng(0)
    cost = np.arange(1, n_features + 1) ** -1.1 * np.exp(random.normal(0, 0.5, n_features))
    random.shuffle(cost)
    rate = np.exp(random.normal(np.log(5e-4), 1.5, n_features)).clip(1e-6, 0.5)
    widths = np.unique(np.geomspace(10, 30_000, n_widths).astype(int))
    return Stage(
        "features/s",
        n_features,
        lambda: independent_floor(cost, rate, widths),
        lambda: np.sort(cost),
        f"one numpy.sort of the costs (our stage computes the floors of {len(widths)} widths)",
    )


def distil(width: int = 64, steps: int = 4) -> Stage:
    """Return the stage that trains a student of tiny-prose."""
    return distil_students(load_teacher("tiny-prose"), [width], "fp32", "svd")(steps)


def distil_students(
    teacher: Teacher, widths: Sequence[int], dtype: Dtype, start: StudentStart, batch_size: int = BATCH_SIZE
) -> Callable[[int], Stage]:
    """Build students, and return the function from a number of steps to the stage that trains them together.

    The limit trains them one after the other. A token counts once for each student.
    """
    from accelerate import Accelerator

    config = DistillConfig(n_tokens=10**9, n_heldout_tokens=CONTEXT, dtype=dtype, batch_size=batch_size)
    ids = torch.randint(1, 4000, (4 * batch_size, CONTEXT), generator=torch.Generator().manual_seed(0))
    split = read_text_split(teacher, ids[:-1], ids[-1:], config)
    accelerator = Accelerator(cpu=device_of(teacher.model).type == "cpu", mixed_precision="no")
    sweep = Sweep(teacher, [StudentSpec(width, start=start) for width in widths], split, config, accelerator)
    plain_steps = [make_plain_step(teacher.model, width, config, start) for width in widths]

    def stage(steps: int) -> Stage:
        def ours() -> None:
            with teacher_backbone(teacher.model) as backbone:
                for _ in range(steps):
                    train_step(sweep, backbone)
                    sweep.step += 1

        def limit() -> None:
            for plain_step in plain_steps:
                for step in range(steps):
                    plain_step(split.batch(step, config))

        n_tokens = steps * config.batch_size * CONTEXT * len(widths)
        return Stage("tokens/s", n_tokens, ours, limit, "a plain loop: full logits and the textbook KL")

    return stage


def train_probes(workload: Workload, n_splits: int) -> Stage:
    """Return the stage that trains probes for the author of each of 750 passages.

    The limit repeats the forward passes and the fits that one call of `probe` makes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def ours() -> None:
        probe(workload.model, workload.hook_name, n_splits=n_splits, batch_size=workload.batch_size)

    fits: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
    batches: list[torch.Tensor] = []
    fit = LogisticRegression.fit

    def recorded_fit(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> LogisticRegression:
        fits.append((model.get_params(), x, y))
        return fit(model, x, y)

    handle = workload.model.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0]))
    try:
        LogisticRegression.fit = recorded_fit
        ours()
    finally:
        LogisticRegression.fit = fit
        handle.remove()

    def limit() -> None:
        for batch in batches:
            for_each_activation(workload, batch, lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            previous_x, model = None, LogisticRegression()
            for settings, x, y in fits:
                if previous_x is not x:  # fits of the same split start from the previous weights
                    previous_x, model = x, LogisticRegression()
                model.set_params(**settings).fit(x, y)

    description = "the same forward passes, and scikit-learn's fits of the same arrays"
    return Stage("probes/s", n_splits, ours, limit, description)


def report(n_features: int = 30_000) -> Stage:
    """Return the stage that writes the HTML report of synthetic statistics."""
    from plotly.utils import PlotlyJSONEncoder

    parts = RunParts("made-up", prediction_with_contexts(n_features))
    return Stage(
        "pages/s",
        1,
        lambda: report_html(parts),
        lambda: [PlotlyJSONEncoder().encode(figure.to_plotly_json()) for figure in report_figures(parts).values()],
        "the figures, and plotly's JSON of them",
    )
