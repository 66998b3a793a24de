"""Settings of the caller's process change no result: torch's and NumPy's modes, the terminal, the home directory."""

import copy
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.measurements import load_as
from tests.helpers.models import CONTEXT, VOCABULARY
from tl_distill_floor import (
    InputError,
    build_student,
    distill,
    load_sae,
    load_teacher,
    measure,
    predict_floor,
    train_sae,
)
from tl_distill_floor.distilling.students import axis_maps
from tl_distill_floor.predicting import toy
from tl_distill_floor.sources.torch_state import neutral_torch_state


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set torch's default dtype during the context."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Ask torch for deterministic algorithms during the context."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Set the precision of matrix products during the context."""
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for backend in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul):
            backend.fp32_precision = "none"  # as in a new process


@contextmanager
def backend_precision(backend: Any, precision: str) -> Iterator[None]:
    """Set the precision of products of fp32 matrices of one backend, or of all, during the context."""
    previous = backend.fp32_precision
    backend.fp32_precision = precision
    try:
        yield
    finally:
        backend.fp32_precision = previous


STATES: dict[str, list[Callable[[], AbstractContextManager[Any]]]] = {
    "float64, deterministic, NumPy errors, GPUs": [
        partial(default_dtype, torch.float64), deterministic_algorithms, partial(np.errstate, all="raise"),
        partial(backend_precision, torch.backends.cuda.matmul, "tf32"),
    ],
    "bfloat16, no gradients, matmul precision": [
        partial(default_dtype, torch.bfloat16), torch.no_grad, partial(matmul_precision, "medium"),
    ],
    "autocast, CPUs": [
        partial(torch.autocast, "cpu", dtype=torch.bfloat16),
        partial(backend_precision, torch.backends.mkldnn.matmul, "bf16"),
    ],
    "inference mode, default device, all backends": [
        torch.inference_mode, partial(torch.device, "meta"), partial(backend_precision, torch.backends, "bf16"),
    ],
}  # fmt: skip
"""Settings that are made together."""


@contextmanager
def in_state(state: str) -> Iterator[None]:
    """Make the settings of a state during the context."""
    with ExitStack() as stack:
        for setting in STATES[state]:
            stack.enter_context(setting())
        yield


def settings() -> tuple[Any, ...]:
    """Return the settings that the caller may have made."""
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.mkldnn.matmul.fp32_precision,
        torch.get_default_device(),
        np.geterr(),
    )


def predicted(bridge: Any, sae: Any, ids: torch.Tensor) -> list[np.ndarray]:
    """Return the numbers of a prediction, and of a toy model."""
    floor = predict_floor(bridge, sae, ids, widths=[4, 8], steps=8, force=True)
    toys = toy.train(6, 0.9, [2], n_seeds=1, steps=3, n_fresh=64)
    return [floor.feature_floor, floor.stats.cost, floor.stats.sum_act, np.asarray(toys.floor)]


@pytest.fixture(scope="module")
def baseline(bridge: Any, sae: Any, ids: torch.Tensor) -> list[np.ndarray]:
    """Return the numbers in a process without special settings."""
    return predicted(bridge, sae, ids)


@pytest.mark.parametrize("state", STATES)
def test_a_prediction_does_not_depend_on_the_state(
    state: str, baseline: list[np.ndarray], bridge: Any, sae: Any, ids: torch.Tensor
) -> None:
    outside = settings()
    with in_state(state):
        before = settings()
        numbers = predicted(bridge, sae, ids)
        assert settings() == before
    assert settings() == outside
    for number, expected in zip(numbers, baseline, strict=True):
        assert (number == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "compiled", ["HookedTransformer", "HookedTransformer in place", "TransformerBridge", "model in a bridge", "SAE"]
)
def test_compiled_models_are_measured_as_others(compiled: str, teacher_dir: Path, sae: Any, ids: torch.Tensor) -> None:
    """`torch.compile` does not look for hooks that are added to a model after its first forward pass."""
    name = compiled.split()[0] if compiled.startswith("Hooked") else "TransformerBridge"
    model, own_sae = load_as(name, teacher_dir), copy.deepcopy(sae)
    options: dict[str, Any] = {"cost": "ablation", "n_codes": 0, "force": True}
    expected = measure(model, own_sae, ids[:8], **options)
    compile_it = partial(torch.compile, backend="eager")
    match compiled:
        case "HookedTransformer" | "TransformerBridge":
            model = compile_it(model)
        case "HookedTransformer in place":
            model.compile(backend="eager")
        case "model in a bridge":
            model.original_model = compile_it(model.original_model)
        case "SAE":
            own_sae = compile_it(own_sae)
    with torch.no_grad():
        model(ids[:8])
    stats = measure(model, own_sae, ids[:8], **options)
    np.testing.assert_array_equal(stats.firing_count, expected.firing_count)
    np.testing.assert_allclose(stats.cost, expected.cost, rtol=1e-5, atol=1e-9)


@pytest.fixture(scope="module")
def training_ids() -> torch.Tensor:
    """Return random token ids [90, 32] to train an SAE on."""
    return torch.randint(1, VOCABULARY, (90, CONTEXT), generator=torch.Generator().manual_seed(0))


def trained_weights(teacher_dir: Path, ids: torch.Tensor, out: Path) -> list[torch.Tensor]:
    """Return the weights of an SAE that is trained, and those of a student that is built."""
    teacher = load_teacher(teacher_dir)
    sizes: dict[str, int] = {"d_sae": 16, "k": 2, "context_size": CONTEXT, "batch_size": 64, "n_tokens": 8192}
    train_sae(teacher, ids, layer=1, out=out, **sizes)
    axis_maps._KNOWN_AXES.clear()  # the weights are matched in this state, too
    student = build_student(teacher, 8)
    return [*load_sae(out).sae.state_dict().values(), *(weight.detach() for weight in student.parameters())]


@pytest.fixture(scope="module")
def baseline_weights(
    teacher_dir: Path, training_ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> list[torch.Tensor]:
    """Return the weights that are trained in a process without special settings."""
    return trained_weights(teacher_dir, training_ids, tmp_path_factory.mktemp("trained") / "sae")


@pytest.mark.parametrize("state", STATES)
def test_trained_weights_do_not_depend_on_the_state(
    state: str, baseline_weights: list[torch.Tensor], training_ids: torch.Tensor, teacher_dir: Path, tmp_path: Path
) -> None:
    with in_state(state):
        weights = trained_weights(teacher_dir, training_ids, tmp_path / "sae")
    assert len(weights) == len(baseline_weights) > 10
    assert all(torch.equal(weight, other) for weight, other in zip(weights, baseline_weights, strict=True))


def test_settings_are_restored_after_an_error() -> None:
    with torch.inference_mode(), default_dtype(torch.float64), torch.autocast("cpu"):
        before = settings()
        with pytest.raises(KeyError), neutral_torch_state():
            raise KeyError
        assert settings() == before


def test_rejects_a_model_loaded_in_inference_mode(teacher_dir: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    with torch.inference_mode():
        model = TransformerBridge.boot_transformers(str(teacher_dir), device="cpu")
        with pytest.raises(InputError, match=r"was loaded in torch\.inference_mode"):
            distill(model, 8)


PRINT = "from tl_distill_floor.cli.streams import use_tolerant_streams\nuse_tolerant_streams()\n"


def run_python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python process."""
    command = [sys.executable, "-c", PRINT + code]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, **options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "ascii:surrogateescape"])
def test_characters_that_the_terminal_lacks_are_replaced(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    completed = run_python("print('α ≥ 1')", stdout=subprocess.PIPE, env=environment)
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "? ? 1\n", "")


def test_a_reader_that_has_gone_ends_nothing(tmp_path: Path) -> None:
    code = "import sys\nfor _ in range(9999): print('line'); print('note', file=sys.stderr)\nopen('done', 'w').close()"
    reader, writer = os.pipe()
    os.close(reader)
    completed = run_python(code, stdout=writer, cwd=tmp_path)
    os.close(writer)
    assert completed.returncode == 0
    assert (tmp_path / "done").exists()
    assert set(completed.stderr.split()) == {"note"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported_once() -> None:
    code = (
        "from tl_distill_floor.cli.app import app\nfrom tl_distill_floor.sources import sae_directory\n"
        "sae_directory.find_saes = lambda *_: []\napp(['saes', 'tiny-prose', '--json'])"
    )
    with open("/dev/full", "w") as full:
        completed = run_python(code, stdout=full)
    message = (
        "tl-floor: cannot write the output: No space left on device; send it to another file, or free some space\n"
    )
    assert (completed.returncode, completed.stderr) == (2, message)


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors of Windows are not inherited like this")
def test_an_output_that_was_closed_before_is_not_the_next_file(tmp_path: Path) -> None:
    code = "file = open('data', 'w')\nprint('lost')\nfile.close()\nassert open('data').read() == ''"
    completed = run_python(code, preexec_fn=lambda: os.close(1), cwd=tmp_path)
    assert (completed.returncode, completed.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"HF_HOME": "/proc/none"}, {"HOME": "/proc/none"}])
def test_the_command_line_runs_without_a_home_or_an_encoding(settings: dict[str, str], tmp_path: Path) -> None:
    environment = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS")} | settings
    command = "-m tl_distill_floor measure --tokens 2000 --steps 0 --widths 16 --context-size 64 --out run"
    completed = subprocess.run(
        [sys.executable, *command.split()], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert completed.returncode == 0, completed.stderr
    assert "Saved in run" in completed.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
