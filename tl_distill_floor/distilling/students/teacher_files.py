"""What a student takes over from its teacher apart from weights: tokenizer, generation settings, settings of use."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoConfig, AutoTokenizer, GenerationConfig
from transformers.utils import CONFIG_NAME

from tl_distill_floor.annotations import Tokenizer
from tl_distill_floor.sources.model_names import official_name
from tl_distill_floor.sources.teacher import Teacher

CHANGED_SETTINGS = ("pad_token_id", "use_cache")
"""Settings that TransformerLens changes in a teacher's configuration."""


class TeacherFiles(NamedTuple):
    """Tokenizer and settings that are saved with a student."""

    tokenizer: Tokenizer | None
    """The teacher's own tokenizer; None if it has none."""
    generation_config: GenerationConfig | None
    """The teacher's generation settings; None if it has none."""
    settings: dict[str, Any] | None
    """Those of `CHANGED_SETTINGS` that the teacher's own configuration has; None if it cannot be read."""
    warnings: tuple[str, ...]
    """What could not be read."""

    def save(self, directory: Path) -> None:
        """Write the tokenizer and the generation settings into a directory, and the settings into its configuration.

        Args:
            directory: a directory with the configuration of a student.
        """
        if self.settings is not None:
            path = directory / CONFIG_NAME
            written = json.loads(path.read_text(encoding="utf-8"))
            kept = {name: value for name, value in written.items() if name not in CHANGED_SETTINGS}
            path.write_text(json.dumps(kept | self.settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]
        if self.generation_config is not None:
            # GenerationConfig.save_pretrained rejects settings that published models have.
            self.generation_config.to_json_file(directory / "generation_config.json")


def teacher_files(teacher: Teacher) -> TeacherFiles:
    """Return the tokenizer and the generation settings of a teacher as they are published.

    TransformerLens changes the tokenizer that it is given: it prepends the beginning-of-sequence token, and sets a
    padding token and its side. So the tokenizer is read again from where it came from.

    Args:
        teacher: the teacher.

    Returns:
        The files. If the tokenizer cannot be read again, the changed one is returned with a warning.
    """
    warnings: list[str] = []
    changed = getattr(teacher.model, "tokenizer", None)
    own = None if changed is None else _own_tokenizer(teacher, changed)
    if changed is not None and own is None:
        warnings.append(
            "the tokenizer is saved as TransformerLens changed it, because the teacher's own cannot be read again from"
            f" {getattr(changed, 'name_or_path', '') or 'an unnamed tokenizer'}"
        )
    return TeacherFiles(own or changed, _generation_config(teacher), _own_settings(teacher), tuple(warnings))


def _own_settings(teacher: Teacher) -> dict[str, Any] | None:
    """Return the settings that TransformerLens changes as the teacher's files have them; None if it has no files."""
    changed = getattr(getattr(teacher.model, "original_model", None), "config", None)
    name = str(getattr(changed, "name_or_path", "") or "")
    if not name:
        return None
    try:
        config = AutoConfig.from_pretrained(name, **_revision(teacher)).get_text_config(decoder=True)
    except (OSError, ValueError):
        return None
    return {field: getattr(config, field) for field in CHANGED_SETTINGS if hasattr(config, field)}


def _revision(teacher: Teacher) -> dict[str, str]:
    """Return the option of `from_pretrained` with which the teacher's revision is read."""
    return {key: str(value) for key, value in teacher.loading.items() if key == "revision"}


def _own_tokenizer(teacher: Teacher, changed: Tokenizer) -> Tokenizer | None:
    """Read the teacher's tokenizer from its directory or repository; None if there is none with these tokens."""
    for source, options in _sources(teacher, changed):
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **options, **_revision(teacher))
        except Exception:  # noqa: S112 - a tokenizer that cannot be read raises whatever its reader raises
            continue
        # TransformerLens may have added special tokens, but every token has its own id.
        vocabulary = changed.get_vocab()  # type: ignore[attr-defined]
        if all(vocabulary.get(token) == number for token, number in tokenizer.get_vocab().items()):
            return tokenizer  # type: ignore[no-any-return]
    return None


def _sources(teacher: Teacher, changed: Tokenizer) -> list[tuple[str, dict[str, str]]]:
    """Return where the tokenizer may have come from: (directory or repository, options of `from_pretrained`)."""
    config = getattr(getattr(teacher.model, "original_model", None), "config", None)
    names = [str(getattr(holder, "name_or_path", "") or "") for holder in (changed, config)]
    plain: list[tuple[str, dict[str, str]]] = [(name, {}) for name in dict.fromkeys(names) if name]
    files = [Path(teacher.name), *(file for name in names if name for file in sorted(Path(name).glob("*.gguf")))]
    return plain + [
        (str(file.parent), {"gguf_file": file.name}) for file in files if file.suffix == ".gguf" and file.is_file()
    ]


def _generation_config(teacher: Teacher) -> GenerationConfig | None:
    """Return a copy of the teacher's generation settings; None if it has none."""
    original = getattr(teacher.model, "original_model", None)
    settings = getattr(original, "generation_config", None)
    if settings is None and original is None:  # a HookedTransformer
        try:
            settings = GenerationConfig.from_pretrained(official_name(str(teacher.model.cfg.model_name)))
        except (OSError, ValueError):
            return None
    return copy.deepcopy(settings) if isinstance(settings, GenerationConfig) else None
