"""GPT-2 in plain PyTorch, as its users write it: the peer of a training step on a card.

Padded to the longest text, scaled_dot_product_attention, autocast for 16 bits, fused AdamW;
`torch.compile` around the loss if wanted, in any of its modes. No package beside PyTorch.
"""

import numpy as np

from minisft.backend.array import to_cpu
from minisft.backend.constants import ceil_div
from minisft.ops.cross_entropy import IGNORE

try:
    import torch
    from torch.nn import functional
except ImportError:
    torch = None


class Peer:
    """The weights of one of our models, and a training step on them."""

    def __init__(self, model, device, precision="float32", compiled=None, lr=1e-5, mode=None,
                 round_to=1, tf32=False, lengths_vary=False):
        """`compiled`: None for eager, or the backend of torch.compile, and `mode` its mode.

        `round_to`: texts are padded to a multiple of this. `tf32`: float32 products by TF32.
        `lengths_vary`: it is compiled once for all lengths, not for the first and then for others.
        """
        self.mode, self.round_to, self.tf32 = mode, round_to, tf32
        self.compiles, self.lengths_vary = compiled is not None, lengths_vary
        config = model.trunk.config
        self.heads, self.layers = config.n_head, config.n_layer
        self.eps, self.device = config.layer_norm_epsilon, device
        self.w = {}
        for p in model.store:
            value = torch.tensor(to_cpu(p.value), device=device)
            turned = value.ndim == 2 and not p.name.startswith("w")     # PyTorch stores (out, in)
            # a Parameter: a CUDA graph reads it where it lies, other inputs are copied
            self.w[p.name] = torch.nn.Parameter(value.T.contiguous() if turned else value)
        self.type = None if precision == "float32" else getattr(torch, precision)
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "float16")
        self.optimizer = torch.optim.AdamW(self.w.values(), lr=lr, weight_decay=0.01, fused=True)
        self.loss = self._loss
        if self.compiles:
            torch.compiler.reset()     # what was compiled for another case counts against a limit
            self.loss = torch.compile(self._loss, backend=compiled, mode=mode)

    def step(self, ids, labels):
        """Token ids and labels of B texts -> mean loss, norm of the gradients; one step is done."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        if self.mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        self.optimizer.zero_grad(set_to_none=True)     # the forward may have their memory
        with torch.autocast(self.device, dtype=self.type or torch.bfloat16,
                            enabled=self.type is not None):
            loss = self.loss(*self.batch(ids, labels))
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.w.values(), 1.0, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), norm

    def batch(self, ids, labels):
        """-> ids (B,T), labels (B,) or (B,T), each text's last place (B,), on the device."""
        longest = ceil_div(max(map(len, ids)), self.round_to) * self.round_to
        padded = np.zeros((len(ids), longest), dtype=np.int64)
        targets = np.full((len(ids), longest), IGNORE)
        for row, text in enumerate(ids):
            padded[row, :len(text)] = text
            if np.ndim(labels[row]):
                targets[row, :len(text)] = labels[row]
        targets = targets if np.ndim(labels[0]) else np.asarray(labels)
        last = np.array([len(text) - 1 for text in ids])
        made = [torch.from_numpy(a).to(self.device) for a in (padded, targets, last)]
        if self.compiles and self.lengths_vary:
            for a in made:
                if a.ndim == 2:
                    torch._dynamo.maybe_mark_dynamic(a, 1)
        return made

    def _loss(self, ids, targets, last):
        w, places = self.w, torch.arange(ids.shape[1], device=ids.device)
        x = functional.embedding(ids, w["wte.weight"]) + w["wpe.weight"][places]
        for i in range(self.layers):
            x = self._block(x, f"h.{i}.")
        x = self._norm(x, "ln_f.")
        if targets.ndim == 1:     # padding behind the last token is never seen by it
            x = x[torch.arange(len(ids), device=ids.device), last]
            logits = functional.linear(x, w["score.weight"])
        else:
            logits = functional.linear(x, w["wte.weight"])
        return functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(),
                                        ignore_index=IGNORE)

    def _block(self, x, name):
        b, t, c = x.shape
        qkv = self._linear(self._norm(x, name + "ln_1."), name + "attn.c_attn.")
        q, k, v = qkv.view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self._linear(y.transpose(1, 2).reshape(b, t, c), name + "attn.c_proj.")
        h = self._linear(self._norm(x, name + "ln_2."), name + "mlp.c_fc.")
        return x + self._linear(functional.gelu(h, approximate="tanh"), name + "mlp.c_proj.")

    def _linear(self, x, name):
        return functional.linear(x, self.w[name + "weight"], self.w[name + "bias"])

    def _norm(self, x, name):
        return functional.layer_norm(x, x.shape[-1:], self.w[name + "weight"],
                                     self.w[name + "bias"], self.eps)
