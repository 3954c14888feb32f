"""Input-gradients of K classes from one forward pass: each operation with the pullback of its cotangents.

The notation: an operation y = f(x) on a batch [B, ...] has cotangents u [K, B, ...], one for each class k; its pullback
maps them to u J_f(x), again [K, B, ...]. Pullbacks are ordinary differentiable operations, so that one backward pass
through forward and adjoint gives the parameter gradient of Eq. 4.
"""
