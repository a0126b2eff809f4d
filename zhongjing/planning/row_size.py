"""What a row of generation takes: one arithmetic, for the rollouts that run and for the plan of them."""

from __future__ import annotations

from dataclasses import dataclass

from zhongjing.planning.shape import Shape

FREE_FRACTION = 0.5
"""Part of the free memory that generation takes where no budget is given.

The rest is for what is not counted: workspaces of kernels, masks, and blocks that an allocator cannot join.
"""
MOST_ROWS = 64
"""Responses made at a time at most, however much memory there is."""
_LOGIT_BYTES = 28  # fp32 logits and their quotient by the temperature, fp64 shares and running sum, a mask


@dataclass(frozen=True, slots=True)
class RowSize:
    """Bytes that generation takes, of one model.

    Attributes:
        token: keys and values of a token in all layers: layers x 2 x key-value heads x head size x format.
            Models with sliding windows keep less.
        growth: of the copy that a layer's keys or values are while a token is added, a token.
        reading: of a prompt's token while it is read: the widest activations of one layer, which has no
            gradients to keep.
        row: of a row whatever its length: its logits.
    """

    token: int
    growth: int
    reading: int
    row: int

    @classmethod
    def of(cls, shape: Shape, width: int) -> RowSize:
        """Of a model that computes, also in fused adapters, with numbers of ``width`` bytes."""
        growth = shape.kv * width
        # MLP: gate, up and their product; around it residual, norm (fp32 on the way), queries, keys, values.
        reading = width * (3 * shape.intermediate + 6 * shape.hidden) + 8 * shape.hidden
        return cls(shape.layers * 2 * growth, growth, reading, shape.vocabulary * _LOGIT_BYTES)

    def needed(self, rows: int, prompt: int, new: int) -> int:
        """Bytes of ``rows`` prompts, padded to ``prompt`` tokens, with ``new`` tokens each."""
        read = prompt * (self.token + self.reading)
        grown = (prompt + new) * (self.token + self.growth)
        return rows * (max(read, grown) + self.row)

    def rows_within(self, budget: int, rows: int, prompt: int, new: int) -> int:
        """How many of ``rows`` equal rows are made at a time: as the budget allows, and one at least."""
        return max(1, min(rows, MOST_ROWS, budget // self.needed(1, prompt, new)))
