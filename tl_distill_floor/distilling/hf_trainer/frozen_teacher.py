"""`FrozenTeacher`: the teacher of a `DistillationTrainer`, run without gradients."""

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel, TrainingArguments
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from tl_distill_floor.annotations import Dtype, HookedModel, StudentStart, TeacherLike, Tokenizer
from tl_distill_floor.distilling.students.build import build_student
from tl_distill_floor.distilling.students.family_models import full_logits
from tl_distill_floor.distilling.students.layers import RESIDUAL_BEFORE_LAYER, is_residual, layer_of
from tl_distill_floor.distilling.students.plain_student import check_merged
from tl_distill_floor.distilling.students.teacher_files import teacher_files
from tl_distill_floor.distilling.training.student_module import Backbone
from tl_distill_floor.errors import InputError
from tl_distill_floor.measuring.causality import check_causal, check_decoder_only
from tl_distill_floor.measuring.hooks import eval_mode, forward_hooks
from tl_distill_floor.measuring.logit_map import LazyLogits
from tl_distill_floor.measuring.teacher_backbone import BackboneOutput, TeacherBackbone
from tl_distill_floor.sources.context_lengths import teacher_vocabulary
from tl_distill_floor.sources.devices import device_of
from tl_distill_floor.sources.model_names import MODEL_CHOICES
from tl_distill_floor.sources.teacher_checks import check_head
from tl_distill_floor.sources.teachers import load_teacher
from tl_distill_floor.sources.torch_state import neutral_torch_state, without_compilation

if TYPE_CHECKING:
    TrainerTeacher: TypeAlias = TeacherLike | PreTrainedModel
else:
    TrainerTeacher = Any
    """What `load_teacher` accepts, or a plain `transformers` causal language model."""


class FrozenTeacher:
    """A teacher on the device of a Trainer, in evaluation mode while it runs.

    A `transformers` model is run as it is. Its gradients and its mode are not changed.

    Args:
        teacher: see `load_teacher`; or a `transformers` causal language model.
        args: the Trainer's arguments, which choose the device.
        dtype: precision of a teacher that is loaded by name.
        hook_name: hook point whose activation hook matching reads; None without hook matching.

    Raises:
        InputError: the teacher is missing, cannot be loaded, is not causal, or has no such hook point.
    """

    def __init__(
        self, teacher: TrainerTeacher | None, args: TrainingArguments, dtype: Dtype, hook_name: str | None
    ) -> None:
        if teacher is None:
            raise InputError(
                f"a DistillationTrainer needs a teacher; set teacher to a model in memory, {MODEL_CHOICES}"
            )
        teacher = without_compilation(teacher)
        check_merged(teacher, "teacher")
        self.model: nn.Module
        """The teacher as it was given or loaded."""
        self._hooked: HookedModel | None = None
        self._hook_name = hook_name
        with neutral_torch_state(), _complete_weights(args):
            if isinstance(teacher, PreTrainedModel):
                self.name = str(teacher.config.name_or_path or type(teacher).__name__)
                self.tokenizer = published_tokenizer(teacher)
                self._generation_config = copy.deepcopy(getattr(teacher, "generation_config", None))
                self.model = _moved(teacher, args.device)
                layer = None if hook_name is None else _layer_before(hook_name)
                check_decoder_only(self.model, "teacher")
                self._backbone: Backbone | TeacherBackbone = Backbone(self.model, layer)
            else:
                loaded = load_teacher(teacher, device=str(args.device), dtype=dtype)
                check_head(loaded.model)
                check_decoder_only(loaded.model, "teacher")
                files = teacher_files(loaded)
                self.name, self.tokenizer, self._generation_config = (
                    loaded.name,
                    files.tokenizer,
                    files.generation_config,
                )
                assert isinstance(loaded.model, nn.Module)
                self.model, self._hooked = _moved(loaded.model, args.device), loaded.model
                self._backbone = TeacherBackbone(loaded.model, hook_name)
                with eval_mode(self.model), self._hooks():
                    self._backbone.verify_logits(None)
            with eval_mode(self.model):
                logits_of = partial(full_logits, self.model) if self._hooked is None else self.model
                check_causal(self.model, "teacher", self.vocabulary, logits_of)

    @property
    def vocabulary(self) -> int:
        """Number of tokens of the vocabulary."""
        if self._hooked is not None:
            return teacher_vocabulary(self._hooked)
        return int(self.model.config.get_text_config().vocab_size)  # type: ignore[union-attr, operator]

    @property
    def width(self) -> int:
        """Width of the residual stream, dimensions."""
        if self._hooked is not None:
            return int(self._hooked.cfg.d_model)
        return int(self.model.config.get_text_config().hidden_size)  # type: ignore[union-attr, operator]

    @torch.no_grad()
    def __call__(self, ids: Int[Tensor, "batch position"]) -> BackboneOutput:
        """Return the last hidden states, and the activation at the hook point.

        Args:
            ids: token ids, with any padding on the right.
        """
        with eval_mode(self.model), self._hooks():
            output: BackboneOutput = self._backbone(ids)
        return output

    def logits(self, last_hidden: Float[Tensor, "token d_model"]) -> LazyLogits:
        """Return the logits of some tokens, computed when they are needed and never under autocast.

        Args:
            last_hidden: last hidden states of the tokens.
        """
        hidden, unembed, logit_map = self._backbone.logits(last_hidden)
        return LazyLogits(hidden, _WithoutAutocast(unembed), logit_map)

    def _hooks(self) -> AbstractContextManager[object]:
        """Return a context in which the hook point of a TransformerLens model is read."""
        if self._hooked is None or self._hook_name is None:
            return nullcontext()
        assert isinstance(self._backbone, TeacherBackbone)
        return forward_hooks(self._hooked, [self._hook_name], self._backbone.capture)

    def build_student(
        self, args: TrainingArguments, width: int, depth: int | None, start: StudentStart
    ) -> PreTrainedModel:
        """Build an untrained student with the teacher's generation settings; see `build_student`.

        Args:
            args: the Trainer's arguments; its `seed` is that of random initial weights.
            width: width of the student, dimensions.
            depth: number of layers; the teacher's if None.
            start: initial weights.

        Raises:
            InputError: see `build_student`; or the teacher's generation settings cannot be saved with a student.
        """
        with _complete_weights(args):
            hooked = self._hooked or _PlainTeacher(self.model, self.name)
            with eval_mode(self.model):
                student = build_student(hooked, width, depth=depth, start=start, seed=args.seed)
        assert isinstance(student, PreTrainedModel)
        if self._generation_config is not None:
            _check_generation_config(self._generation_config)
            student.generation_config = self._generation_config
        return student


class _WithoutAutocast(nn.Module):
    """An unembedding that computes in the precision of its weights also under autocast."""

    def __init__(self, unembed: nn.Module) -> None:
        super().__init__()
        self._unembed = unembed

    def forward(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "token vocabulary"]:
        """Return the logits."""
        with torch.autocast(hidden.device.type, enabled=False):
            logits: Tensor = self._unembed(hidden)
        return logits


class _PlainTeacher(nn.Module):
    """A `transformers` model with what `build_student` reads of a model of TransformerLens."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.original_model = model
        self.cfg = SimpleNamespace(model_name=name)
        self.tokenizer = None
        self.hook_dict: dict[str, nn.Module] = {}

    def forward(self, ids: Int[Tensor, "batch position"]) -> Float[Tensor, "batch position vocabulary"]:
        """Return the logits."""
        return full_logits(self.original_model, ids)


@contextmanager
def _complete_weights(args: TrainingArguments) -> Iterator[None]:
    """Let models be loaded completely in every process during the context, also if the Trainer shards the student.

    With FSDP, `from_pretrained` may load weights in the first process only. With the third stage of DeepSpeed's ZeRO,
    it divides them among the processes.
    """
    variable = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    setting, deepspeed = os.environ.pop(variable, None), getattr(args, "hf_deepspeed_config", None)
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if setting is not None:
            os.environ[variable] = setting
        if deepspeed is not None:
            set_hf_deepspeed_config(deepspeed)


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to a device, unless accelerate has spread it over several."""
    plain = vars(model).get("original_model") or model
    is_spread = len(set((getattr(plain, "hf_device_map", None) or {}).values())) > 1
    current = device_of(model)
    if is_spread or (current.type == device.type and device.index in (None, current.index or 0)):
        return model
    if isinstance(model, HookedModel):
        model.to(device, print_details=False)  # type: ignore[call-overload]
        return model
    return model.to(device)


def _check_generation_config(settings: GenerationConfig) -> None:
    """Raise an InputError if generation settings cannot be saved, as the Trainer would find out after some training."""
    with TemporaryDirectory() as directory:
        try:
            settings.save_pretrained(directory)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the teacher's generation_config, which is saved with the student, is not valid ({reason[:300]}); fix"
                " it"
            ) from error


def _layer_before(hook_name: str) -> int:
    """Return the layer of a plain model after which a hook point of the residual stream is."""
    layer = layer_of(hook_name) if is_residual(hook_name) else None
    if layer is not None and hook_name.endswith(RESIDUAL_BEFORE_LAYER):
        layer -= 1
    if layer is None or layer < 0:
        raise InputError(
            f"a transformers model has no hook point {hook_name}, only the residual stream after each layer, such as"
            " blocks.0.hook_resid_post; name one of these, or load the teacher with load_teacher"
        )
    return layer


def published_tokenizer(model: PreTrainedModel) -> Tokenizer | None:
    """Return the tokenizer in the directory or repository that a model was loaded from; None if there is none."""
    if not model.config.name_or_path:
        return None
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
    except Exception:  # a missing or damaged tokenizer raises whatever its reader raises
        return None
    return tokenizer
