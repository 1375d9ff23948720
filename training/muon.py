"""Muon, with AdamW for what is no matrix.

After Jordan et al. 2024 (the optimizer) and Liu et al. 2025, arXiv 2502.16982 (steps of AdamW's usual size, so
that one learning rate serves both).
"""

import torch

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that drives singular values to about 1 in five rounds
STEP_SIZE = 0.2  # root mean square of AdamW's steps, in learning rates


def orthogonal(x, rounds=5):
    """About U V^T of x = U S V^T. [rows, columns]"""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x) / (x.norm() + 1e-7)
    for _ in range(rounds):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """One group of matrices and kernels (flattened to [outputs, rest]); AdamW goes beside it for the rest.

    torch.optim.Muon has the same mathematics, but refuses kernels (two axes only), computes in bf16 on any processor,
    and is not in the oldest torch that is supported. Stacking matrices of one shape into one product is no faster.
    """

    def __init__(self, parameters, lr, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                momentum.lerp_(parameter.grad, 1 - MOMENTUM)
                ahead = torch.lerp(parameter.grad, momentum, MOMENTUM).flatten(1)
                update = orthogonal(ahead) * (STEP_SIZE * max(ahead.shape) ** 0.5)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(update.view_as(parameter), alpha=group["lr"])


class Together:
    """Several optimizers of torch that act as one."""

    def __init__(self, *parts):
        self.parts = parts

    def step(self, lr):
        """One step at this learning rate, times the "factor" of a group that has one; gradients are cleared."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr * group.get("factor", 1.0)
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self):
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states):
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Optimizers(Together):
    """Muon for the kernels of `modules`, AdamW for norms, biases and layers with less than 8 outputs."""

    def __init__(self, modules, lr, weight_decay):
        kernels, others = [], []
        for parameter in modules.parameters():
            matrix = parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= 8
            (kernels if matrix else others).append(parameter)
        super().__init__(Muon(kernels, lr, weight_decay), torch.optim.AdamW(others, lr, (0.9, 0.99), weight_decay=0.0))
