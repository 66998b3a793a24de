"""The stages that `speed.py` times: ours, the least that each must do, and what others would run instead."""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from distill_speed import bare as bare_step
from report_in_a_browser import made_up

from tl_distill_floor import independent_floor, load_sae, load_teacher, load_text, measure, probe
from tl_distill_floor.display.report import figures_of, report_html
from tl_distill_floor.display.run_parts import RunParts
from tl_distill_floor.distilling.config import DistillConfig, StudentSpec
from tl_distill_floor.distilling.forward import teacher_body
from tl_distill_floor.distilling.texts import texts_of
from tl_distill_floor.distilling.trainer import Sweep
from tl_distill_floor.measuring.batch_sums import CODES_AT_ONCE, LEAST_AT_ONCE
from tl_distill_floor.measuring.hooks import differentiator, hook_point, reader
from tl_distill_floor.measuring.strongest_contexts import LOGITS_AT_ONCE, promoted_tokens
from tl_distill_floor.predicting import bottleneck
from tl_distill_floor.predicting.simulation import BATCH as TOKENS_A_STEP
from tl_distill_floor.predicting.toy import StepCounter
from tl_distill_floor.results.codes import Codes

CONTEXT, BATCH = 256, 16
Work = Callable[[], object]


class Stage(NamedTuple):
    """One thing that takes time."""

    unit: str
    amount: float
    """Units that one run of it does."""
    ours: Work
    limit: Work
    limit_is: str
    peers: Mapping[str, Work] = MappingProxyType({})


class Subject(NamedTuple):
    """A teacher, an SAE of it, and token ids."""

    model: Any
    plain: Any
    """Of the same class and size in transformers, with random weights."""
    sae: Any
    hook_name: str
    ids: torch.Tensor


def tiny_prose(n_tokens: int) -> Subject:
    source = load_sae(None, model_name="tiny-prose")
    return _subject(load_teacher("tiny-prose").model, source.sae, source.hook_name, n_tokens)


def smollm2(n_tokens: int) -> Subject:
    hook = "blocks.12.hook_resid_post"
    model = load_teacher("smollm2-135m").model
    return _subject(model, random_sae(model, 4608, hook), hook, n_tokens)


def pythia_410m(n_tokens: int) -> Subject:
    """Random weights of its shape, and an SAE of 32,768 features of which about 200 fire."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=50_304, hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16,
        max_position_embeddings=2048,
    )  # fmt: skip
    torch.manual_seed(0)
    tokenizer = load_teacher("tiny-prose").model.tokenizer
    model = TransformerBridge.boot_transformers("random", hf_model=GPTNeoXForCausalLM(config), tokenizer=tokenizer)
    hook = "blocks.12.hook_resid_post"
    return _subject(model, random_sae(model, 32_768, hook, l0=200), hook, n_tokens)


def _subject(model: Any, sae: Any, hook_name: str, n_tokens: int) -> Subject:
    inner = model.original_model
    return Subject(model, type(inner)._from_config(inner.config).eval(), sae, hook_name, random_ids(n_tokens))


def random_ids(n_tokens: int) -> torch.Tensor:
    return torch.randint(1000, 4000, (n_tokens // CONTEXT, CONTEXT), generator=torch.Generator().manual_seed(0))


def random_sae(model: Any, d_sae: int, hook: str, l0: int = 40) -> Any:
    """A random SAE whose threshold lets about `l0` features a token through."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    d_in, metadata = model.cfg.d_model, SAEMetadata(hook_name=hook, context_size=CONTEXT, prepend_bos=False)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae, normalize_activations="none", metadata=metadata))
    torch.manual_seed(0)
    with torch.no_grad(), reader(model, [hook]) as read:
        sae.W_enc.copy_(torch.randn(d_in, d_sae) / d_in**0.5)
        sae.W_dec.copy_(sae.W_enc.T)
        seen = read(random_ids(CONTEXT))[0].flatten(0, 1)[1::8] @ sae.W_enc
        sae.threshold.fill_(float(seen.flatten().topk(len(seen) * l0).values[-1]))
    return sae


def load() -> Stage:
    """The embedded teacher, SAE and text, from files to objects."""
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

    return Stage("loads/s", 1, ours, limit, "transformers' and SAELens's own loading of the same files")


def measure_energy(s: Subject) -> Stage:
    peers = {"SAELens run_evals": run_evals, "SAELens ActivationsStore": store, "transformers + torch": plain_script}
    return Stage(
        "tokens/s",
        s.ids.numel(),
        partial(measure, s.model, s.sae, s.ids, cost="energy", n_tokens=s.ids.numel(), batch_size=BATCH),
        partial(forward_and_encode, s),
        "forward pass to the hook point, sae.encode",
        {name: partial(peer, s) for name, peer in peers.items()},
    )


def measure_fisher(s: Subject) -> Stage:
    return Stage(
        "tokens/s",
        s.ids.numel(),
        partial(measure, s.model, s.sae, s.ids, cost="fisher", n_tokens=s.ids.numel(), batch_size=BATCH),
        partial(forward_backward_and_encode, s),
        "forward pass, backward pass to the hook point, sae.encode",
    )


def promoted(s: Subject) -> Stage:
    """Once a measurement, however long the text: the tokens that every feature promotes."""
    weight = next(s.model.unembed.parameters())
    unembedding = weight.detach().T if weight.shape[0] == s.model.cfg.d_vocab else weight.detach()
    rows = s.sae.W_dec.detach().split(max(1, LOGITS_AT_ONCE // s.model.cfg.d_vocab))

    def limit() -> None:
        for some in rows:
            some @ unembedding

    return Stage(
        "features/s",
        s.sae.cfg.d_sae,
        lambda: promoted_tokens(s.model, s.sae.W_dec),
        limit,
        "the product of decoder and unembedding",
    )


def forward_and_encode(s: Subject) -> None:
    forward(s, s.ids, encode)


def forward(s: Subject, ids: torch.Tensor, then: Callable[[Subject, torch.Tensor], object]) -> None:
    """Forward passes that end at the hook point, whose output is given on."""

    class StopError(Exception):
        pass

    caught: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)
        raise StopError

    handle = hook_point(s.model, s.hook_name).register_forward_hook(keep)
    try:
        with torch.no_grad():
            for batch in ids.split(BATCH):
                try:
                    s.model(batch)
                except StopError:
                    then(s, caught.pop())
    finally:
        handle.remove()


def encode(s: Subject, acts: torch.Tensor) -> None:
    """As many tokens at a time as ours, which is the faster, since the codes of a whole batch fit no cache."""
    for some in acts.flatten(0, 1).split(max(LEAST_AT_ONCE, CODES_AT_ONCE // s.sae.cfg.d_sae)):
        s.sae.encode(some)


def forward_backward_and_encode(s: Subject) -> None:
    with differentiator(s.model, [s.hook_name]) as run:
        for batch in s.ids.split(BATCH):
            logits, acts = run(batch)
            torch.autograd.grad(logits, acts, torch.ones_like(logits))
            with torch.no_grad():
                encode(s, acts[0].detach())


def run_evals(s: Subject) -> None:
    """Sparsity, variance and feature densities."""
    from sae_lens.evals import EvalConfig
    from sae_lens.evals import run_evals as evaluate
    from sae_lens.training.activation_scaler import ActivationScaler

    config = EvalConfig(
        batch_size_prompts=BATCH,
        n_eval_sparsity_variance_batches=len(s.ids) // BATCH,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    evaluate(s.sae, _store_of(s), s.model, ActivationScaler(), config)


def _store_of(s: Subject) -> Any:
    from datasets import Dataset
    from sae_lens import ActivationsStore

    rows = Dataset.from_dict({"input_ids": s.ids.numpy()}).with_format("numpy")
    return ActivationsStore.from_sae(
        s.model, s.sae, rows, streaming=False, context_size=CONTEXT, total_tokens=1, store_batch_size_prompts=BATCH
    )


def store(s: Subject) -> None:
    """Activations from SAELens's store, and the sums that anyone would write."""
    activations, sums = _store_of(s), Sums(s.sae.cfg.d_sae)
    with torch.no_grad():
        for _ in range(len(s.ids) // BATCH):
            sums.add(s.sae.encode(activations.get_activations(activations.get_batch_tokens()).flatten(0, -2)))


def plain_script(s: Subject) -> None:
    """transformers, all layers of it, a hidden state, and the same sums."""
    layer, sums = int(s.hook_name.split(".")[1]), Sums(s.sae.cfg.d_sae)
    with torch.no_grad():
        for batch in s.ids.split(BATCH):
            hidden = s.plain.base_model(batch, output_hidden_states=True).hidden_states[layer + 1]
            sums.add(s.sae.encode(hidden.flatten(0, 1)))


class Sums:
    def __init__(self, n: int) -> None:
        self.count, self.sum, self.square = torch.zeros(n), torch.zeros(n), torch.zeros(n)

    def add(self, codes: torch.Tensor) -> None:
        self.count += (codes > 0).sum(0)
        self.sum += codes.sum(0)
        self.square += codes.square().sum(0)


def simulate(n_features: int, width: int, l0: int, steps: int) -> Stage:
    """DistillConfig of a bottleneck student on codes."""
    codes = drawn_codes(n_features, l0, 8 * TOKENS_A_STEP)
    weight, amplitude = torch.ones(n_features), torch.ones(n_features)
    options = {"steps": steps, "batch_size": TOKENS_A_STEP, "seed": 0, "report": StepCounter(None, 1)}
    batch, columns = next(bottleneck._batches(codes, np.ones(codes.n_tokens), TOKENS_A_STEP, 0, weight.device))
    n_steps = bottleneck.steps_a_width(steps)

    def limit() -> None:
        student = bottleneck.BottleneckTrainer(width, weight, amplitude, 0, 1.0)
        for _ in range(n_steps):
            student.step(batch, columns, 1.0)

    def dense() -> None:
        student = bottleneck.BottleneckTrainer(width, weight, amplitude, 0, 1.0)
        x = torch.zeros(batch.n_tokens, n_features)
        x[batch.token, batch.feature] = batch.value
        for _ in range(n_steps):
            slope = dense_slopes(student.model, x, weight)
            student.W.grad, student.scaled_b.grad = slope.W, slope.b
            student.optimizer.step()

    return Stage(
        "tokens/s",
        n_steps * TOKENS_A_STEP,
        lambda: bottleneck.train(codes, weight, amplitude, [width], **options),
        limit,
        "slopes and Adam on a batch that is at hand",
        {"dense codes": dense},
    )


def drawn_codes(n_features: int, l0: int, n_tokens: int) -> Codes:
    """`l0` features a token, whose rates fall as i^-½."""
    random = np.random.default_rng(0)
    keys = -0.5 * np.log(np.arange(1, n_features + 1))
    found, at_once = [], max(1, 2**23 // n_features)
    for first in range(0, n_tokens, at_once):
        dense = np.zeros((min(at_once, n_tokens - first), n_features), dtype=np.float32)
        drawn = np.argpartition(-keys - random.gumbel(size=dense.shape), l0, axis=1)[:, :l0]
        np.put_along_axis(dense, drawn, random.random(drawn.shape) + 0.5, axis=1)
        found.append(Codes.from_dense(dense))
    return Codes.joined(found)


@torch.no_grad()
def dense_slopes(model: bottleneck.Bottleneck, x: torch.Tensor, weight: torch.Tensor) -> bottleneck.Bottleneck:
    """The same slope by two products forward and three back."""
    hidden = x @ model.W
    output = model.output(hidden)
    fired = output > 0
    error = output.sub_(x).mul_(weight * (2.0 / len(x))).mul_(fired)
    return bottleneck.Bottleneck(error.T @ hidden + x.T @ (error @ model.W), error.sum(0))


def allocate(n_features: int = 10**6, n_widths: int = 100) -> Stage:
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
        f"one numpy.sort of the costs; ours is the floors of {len(widths)} widths",
    )


def distil(width: int = 64, steps: int = 4) -> Stage:
    from accelerate import Accelerator

    training = DistillConfig(n_tokens=10**6, n_heldout_tokens=CONTEXT)
    teacher = load_teacher("tiny-prose")
    ids = torch.randint(1, 4000, (64, CONTEXT), generator=torch.Generator().manual_seed(0))
    texts = texts_of(teacher, ids[:-1], ids[-1:], training)
    sweep = Sweep(teacher, [StudentSpec(width)], texts, training, Accelerator(cpu=True))
    single = bare_step(teacher.model, width, training)

    def ours() -> None:
        with teacher_body(teacher.model) as body:
            for _ in range(steps):
                sweep._one_step(body)
                sweep.step += 1

    def limit() -> None:
        for _ in range(steps):
            single(texts.batch(0, training))

    amount = steps * training.batch_size * CONTEXT
    return Stage("tokens/s", amount, ours, limit, "a plain loop: whole logits, the KL as one would write it")


def probing(s: Subject, splits: int) -> Stage:
    """Who wrote each of 750 passages. The limit is played back from a run of ours."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    def ours() -> None:
        probe(s.model, s.hook_name, splits=splits, batch_size=BATCH)

    fits: list[tuple[dict[str, Any], np.ndarray, np.ndarray]] = []
    passes: list[torch.Tensor] = []
    fit, handle = (
        LogisticRegression.fit,
        s.model.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0])),
    )
    try:
        LogisticRegression.fit = lambda m, x, y: (fits.append((m.get_params(), x, y)), fit(m, x, y))[1]
        ours()
    finally:
        LogisticRegression.fit = fit
        handle.remove()

    def limit() -> None:
        for batch in passes:
            forward(s, batch, lambda *_: None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            previous: Any = None
            for settings, x, y in fits:
                if previous is None or previous[0] is not x:
                    previous = x, LogisticRegression()
                previous[1].set_params(**settings).fit(x, y)

    return Stage("probes/s", splits, ours, limit, "the same forward passes and scikit-learn's fits of the same arrays")


def report(n_features: int = 30_000) -> Stage:
    from plotly.utils import PlotlyJSONEncoder

    parts = RunParts("made-up", made_up(n_features))
    return Stage(
        "pages/s",
        1,
        lambda: report_html(parts),
        lambda: [PlotlyJSONEncoder().encode(figure.to_plotly_json()) for figure in figures_of(parts).values()],
        "the figures, and plotly's JSON of them",
    )
