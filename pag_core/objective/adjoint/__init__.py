"""Input-gradients of K classes from one forward pass: each operation with the pullback of its cotangents.

The notation: an operation y = f(x) on a batch [B, ...] has cotangents u [K, B, ...], one for each class k; its pullback
maps them to u J_f(x), again [K, B, ...]. Pullbacks are ordinary differentiable operations, so that one backward pass
through forward and adjoint gives the parameter gradient of Eq. 4.

Why not autograd alone: it goes back for one class after the other, and then cannot be compiled (docs/performance.md has both
side by side). What falls back: an operation without a rule, or whose rule says `NotApplicable` for this form, is differentiated
by autograd by itself (`general`); complex values always are.

A rule is a function from a `Call` to the operation's output and its pullback, registered under the operation's ATen name:

    @rule("square")
    def square(call):
        x = call.arguments[0]
        return x.square(), lambda cotangent: (applied(cotangent) * 2 * x,)

Only active arguments, those that depend on the image, need a share; what the pullback keeps of the parameters must stay
differentiable. Its test is a line in LAYERS of tests/unit/objective/adjoint/test_layers.py, which compares input-gradients and
parameter gradients with autograd's in float64.
"""
