"""What is allowed of other packages: a lower bound for each, and TransformerLens 4, which SAELens keeps out as yet."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
ON_4 = """
import sys
import pytest
import torch
import tests.helpers.transformer_lens_4
from tl_distill_floor import InputError, build_student, load_teacher, measure, predict_floor
from tl_distill_floor.cli.app import main

with pytest.raises(ImportError):
    from transformer_lens import HookedTransformer
with pytest.raises(ImportError):
    import transformer_lens.loading_from_pretrained
teacher = load_teacher("tiny-prose").model
ids = torch.randint(1, 4000, (8, 32), generator=torch.Generator().manual_seed(0))
assert measure(teacher, "tiny-prose-sae", ids).n_tokens == 8 * 31
assert predict_floor(teacher, "tiny-prose-sae", ids, widths=[8], steps=4).unit == "nats"
assert build_student(teacher, 64).config.hidden_size == 64
with pytest.raises(InputError, match="'fold_ln': True}, which needs TransformerLens below 4"):
    load_teacher("gpt2-small", model_kwargs={"fold_ln": True})
sys.argv = "tl-floor measure --cost energy --tokens 3000 --widths 8 --steps 4 --out".split() + sys.argv[1:]
main()
"""


def test_every_dependency_has_a_lower_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for some in (project["dependencies"], *project["optional-dependencies"].values()):
        assert [requirement for requirement in some if ">=" not in requirement] == []


def test_transformer_lens_4_leaves_all_but_processed_teachers(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_4, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Loss floor (MSE)" in done.stdout
