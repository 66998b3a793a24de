"""Hook points in the names of the folders and of the file that hold an SAE."""

import re
from pathlib import PurePosixPath

from tl_distill_floor.errors import InputError
from tl_distill_floor.sources.sae_formats.files import SaeFile
from tl_distill_floor.sources.sae_formats.hook_names import hook_name_at, hook_name_of

_N_FOLDERS = 3
"""Folders that can name the hook point, such as resid_post_layer_8/trainer_0/checkpoints/ae_100.pt."""
_HOOK = re.compile(
    r"blocks\.\d+\.(?:attn\.hook_z|mlp\.hook_post|hook_resid_(?:pre|mid|post)|hook_(?:mlp|attn)_out)(?![a-z])"
)
_SITE_AND_LAYER = re.compile(
    r"(?<![a-z])(resid_(?:pre|mid|post|out)|resid|mlp_out|mlp|(?:attn|attention)_out|attn|attention)_layer_?(\d+)"
)


def folders_of(file: SaeFile) -> tuple[str, ...]:
    """Return the names of the folders that hold a file, the nearest one first."""
    return tuple(reversed(file.location.parts[-1 - _N_FOLDERS : -1]))


def hook_name_in_path(file: SaeFile) -> str | None:
    """Return the hook point that the name of a file, or of a folder that holds it, names; None if none does.

    Raises:
        InputError: several hook points are named.
    """
    stem = PurePosixPath(file.location.name).stem
    named = list(dict.fromkeys(name for part in (stem, *folders_of(file)) if (name := hook_name_in(part)) is not None))
    if len(named) > 1:
        raise InputError(
            f"{file.name} names several hook points in its path ({', '.join(named)}); say which one it reads, such as"
            f' --sae-format \'{{"hook_name": "{named[0]}"}}\''
        )
    return named[0] if named else None


def hook_name_in(part: str) -> str | None:
    """Return the hook point that one part of a path names; None if it names none.

    Example:
        >>> hook_name_in("mlp_out_layer3"), hook_name_in("gpt2_blocks.8.hook_resid_pre_24576"), hook_name_in("layers.3")
        ('blocks.3.hook_mlp_out', 'blocks.8.hook_resid_pre', 'blocks.3.hook_resid_post')
    """
    if match := _SITE_AND_LAYER.search(part.lower()):
        return hook_name_at(match[1], int(match[2]))
    if match := _HOOK.search(part):
        return match[0]
    return hook_name_of(part)
