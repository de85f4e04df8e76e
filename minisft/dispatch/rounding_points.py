"""Where numbers are rounded to 16 bits or TF32, and where not: one table for every device.

`docs/precision.md` shows it and `tests/test_rounding_points.py` asks every implementation: a change
of an input that rounding swallows must change no bit of the result where the table says "rounded",
and must change it where the table says "float32".
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundingPoint:
    """An array that goes into an operation, with bfloat16 or float16 asked for.

    `cpu`, `gpu`: whether it is rounded there; sums and results are float32 on both. `amx`: whether
    it is on a CPU's tiles, too, in bfloat16.
    """

    operation: str
    array: str
    cpu: bool
    gpu: bool
    note: str = ""
    amx: bool = False

    @property
    def tf32(self) -> bool:
        """-> whether it is rounded to TF32 where that is asked for: factors of products alone."""
        return self.operation in ("linear", "lora") and self.cpu


ROUNDING_POINTS = (
    RoundingPoint("linear", "x", True, True, "kept rounded for the backward"),
    RoundingPoint("linear", "w", True, True, "the weight itself stays float32 beside its copy"),
    RoundingPoint("linear", "b", False, False, "GPU: rounded where the product stores attention's "
                  "q, k and v"),
    RoundingPoint("linear", "dy", True, True, "in dx and dw; db sums dy as it is"),
    RoundingPoint("lora", "x", True, True, "kept rounded for the backward"),
    RoundingPoint("lora", "a", True, True, "the product of x and a too, before it meets b"),
    RoundingPoint("lora", "b", True, True),
    RoundingPoint("lora", "dy", True, True, "the product of dy and b too, before it meets a and x"),
    RoundingPoint("attention", "q", False, True, "head widths that are a multiple of 16 (AMX: 32) "
                  "up to 128; else float32. AMX: whole texts of at most 1,024 tokens", True),
    RoundingPoint("attention", "k", False, True, "as q", True),
    RoundingPoint("attention", "v", False, True, "as q; the probabilities too, before they meet "
                  "v, but not those of a new token", True),
    RoundingPoint("attention", "dy", False, True, "as q; the scores' gradients too; GPU: GPT-2's "
                  "dq, dk and dv are stored as linear's dy", True),
    RoundingPoint("layer_norm", "x", False, False, "the sums before it too; y is stored as "
                  "linear's x, on a CPU where a loop is compiled"),
    RoundingPoint("gelu", "x", False, True, "stored by the product before it, unless an "
                  "adapter adds to that; the bias is float32, y stored as linear's x", True),
    RoundingPoint("gelu", "dy", False, True, "as x; dx is stored as linear's dy, the bias's "
                  "gradient sums it as it was", True),
    RoundingPoint("softmax", "s", False, False),
    RoundingPoint("cross_entropy", "z", False, True, "logits of a language model's step, "
                  "stored by the product, and the gradient in their place; float32 elsewhere, as "
                  "in evaluation", True),
    RoundingPoint("span_cross_entropy", "z", False, False),
    RoundingPoint("embedding", "w", False, False, "rows are looked up in the float32 weight"),
    RoundingPoint("dropout", "x", False, False),
)


def as_table() -> str:
    """-> the table in Markdown."""
    def said(is_rounded):
        return "rounded" if is_rounded else "float32"
    lines = ["| operation | array | CPU | with AMX | GPU | |", "|---|---|---|---|---|---|"]
    return "\n".join([*lines, *(
        f"| {p.operation} | `{p.array}` | {said(p.cpu)} | {said(p.cpu or p.amx)} | {said(p.gpu)} | "
        f"{p.note} |" for p in ROUNDING_POINTS)])
