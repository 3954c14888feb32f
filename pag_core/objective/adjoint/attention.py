"""Scaled dot-product attention, written out: its fused kernels have no second derivative."""

import math

import torch

from pag_core.objective.adjoint.cotangent import Call, Cotangent, NotApplicable, Pullback, applied, rule
from pag_core.objective.adjoint.elementwise import dropout
from pag_core.objective.adjoint.linear import times_shared

aten = torch.ops.aten


@rule("scaled_dot_product_attention")
def attention(call: Call) -> tuple[torch.Tensor, Pullback]:
    """y = p v with p = softmax(scale q k^T), for q, k, v [B, heads, tokens, width]."""
    query, key, value = call.arguments[:3]
    mask, probability = call.argument(3, "attn_mask"), call.argument(4, "dropout_p", 0.0)
    causal, grouped = call.argument(5, "is_causal", False), call.keywords.get("enable_gqa", False)
    if mask is not None or causal or grouped or not all(call.active[:3]) or query.dim() != 4:
        raise NotApplicable
    scale = call.keywords.get("scale") or 1 / math.sqrt(query.shape[-1])
    weights = torch.softmax(scale * query @ key.mT, -1)
    dropped, through_dropout = dropout(Call(aten.dropout, (weights, probability, True), {}, (True,), call.context))

    def pullback(cotangent: Cotangent) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        u = applied(cotangent)
        for_value = times_shared(u.mT, dropped).mT
        (for_weights,) = through_dropout(times_shared(u, value.mT))
        weighted = applied(for_weights) * weights
        for_scores = scale * (weighted - weights * weighted.sum(-1, keepdim=True))
        return times_shared(for_scores, key), times_shared(for_scores.mT, query), for_value

    return dropped @ value, pullback
