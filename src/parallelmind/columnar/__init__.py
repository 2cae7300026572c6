"""The one definition of a row: positions, visibility, labels, 2D RoPE. It needs torch only."""

from parallelmind.columnar.layout import (
    IGNORE_INDEX,
    PAD_BRANCH,
    PackedRow,
    branch_starts,
    pack_row,
    pos2d_ids,
    shift_labels,
)
from parallelmind.columnar.prompt import inject_pos2d_hook, prepare_pos2d, remove_pos2d_hook, set_prompt_pos2d
from parallelmind.columnar.rope import (
    PAIR_CHOICES,
    ROPE_MODES,
    Interleaved2DRoPE,
    KeyTurner,
    PairChoice,
    RopeMode,
    auto_pair_indices,
    choose_pairs,
    find_rope_patch,
    patch_model_with_interleaved_2d_rope,
    set_rope_pos2d,
)
from parallelmind.columnar.visibility import (
    FULL,
    Reach,
    additive_mask,
    build_columnar_causal_mask,
    visible,
)
from parallelmind.settings.visibility import VISIBILITIES, Visibility, sees_branches, sees_main

__all__ = [
    "FULL",
    "IGNORE_INDEX",
    "PAD_BRANCH",
    "PAIR_CHOICES",
    "ROPE_MODES",
    "VISIBILITIES",
    "PackedRow",
    "PairChoice",
    "Interleaved2DRoPE",
    "KeyTurner",
    "Reach",
    "RopeMode",
    "Visibility",
    "additive_mask",
    "auto_pair_indices",
    "branch_starts",
    "build_columnar_causal_mask",
    "choose_pairs",
    "find_rope_patch",
    "inject_pos2d_hook",
    "pack_row",
    "patch_model_with_interleaved_2d_rope",
    "pos2d_ids",
    "prepare_pos2d",
    "remove_pos2d_hook",
    "sees_branches",
    "sees_main",
    "set_prompt_pos2d",
    "set_rope_pos2d",
    "shift_labels",
    "visible",
]
