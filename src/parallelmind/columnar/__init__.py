"""The one definition of a row: positions, visibility, labels, 2D RoPE. Needs torch only."""

from parallelmind.columnar.layout import (
    IGNORE_INDEX,
    PAD_BRANCH,
    PackedRow,
    branch_starts,
    pack_row,
    pos2d_ids,
    shift_labels,
)
from parallelmind.columnar.rope import (
    PAIR_CHOICES,
    ROPE_MODES,
    PairChoice,
    Rope2D,
    RopeMode,
    auto_pair_indices,
    choose_pairs,
    find_rope_patch,
    patch_model_with_interleaved_2d_rope,
    set_rope_pos2d,
)
from parallelmind.columnar.visibility import (
    VISIBILITIES,
    Visibility,
    additive_mask,
    build_columnar_causal_mask,
    sees_main,
    visible,
)

__all__ = [
    "IGNORE_INDEX",
    "PAD_BRANCH",
    "PAIR_CHOICES",
    "ROPE_MODES",
    "VISIBILITIES",
    "PackedRow",
    "PairChoice",
    "Rope2D",
    "RopeMode",
    "Visibility",
    "additive_mask",
    "auto_pair_indices",
    "branch_starts",
    "build_columnar_causal_mask",
    "choose_pairs",
    "find_rope_patch",
    "pack_row",
    "patch_model_with_interleaved_2d_rope",
    "pos2d_ids",
    "sees_main",
    "set_rope_pos2d",
    "shift_labels",
    "visible",
]
