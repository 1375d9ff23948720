"""Muon, with AdamW for what is no matrix.

After Jordan et al. 2024 (the optimizer) and Liu et al. 2025, arXiv 2502.16982 (steps of AdamW's usual size, so
that one learning rate serves both).
"""

import torch

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that drives singular values to about 1 in five rounds
STEP_SIZE = 0.2  # root mean square of AdamW's steps, in learning rates


def orthogonal(x, rounds=5):
    """About U V^T of x = U S V^T, for one matrix or a stack of them. [..., rows, columns]"""
    a, b, c = NEWTON_SCHULZ
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(rounds):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """One group of matrices and kernels (flattened to [outputs, rest]); AdamW goes beside it for the rest.

    torch.optim.Muon has the same mathematics, but refuses kernels (two axes only), computes in bf16 on any processor,
    one matrix after the other, and is not in the oldest torch that is supported. Here matrices of one shape are
    stacked: an autoencoder has hundreds of small ones.
    """

    def __init__(self, parameters, lr, weight_decay=0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            by_shape = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shape = len(parameter), parameter[0].numel()
                    by_shape.setdefault(shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                self.update(parameters, shape, group["lr"], group["weight_decay"])

    def update(self, parameters, shape, lr, weight_decay):
        """One step of parameters that have this shape when flattened."""
        gradients = [parameter.grad for parameter in parameters]
        momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch.stack([v.flatten(1) for v in torch._foreach_lerp(gradients, momenta, MOMENTUM)])
        updates = orthogonal(ahead) * (STEP_SIZE * max(shape) ** 0.5)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, [u.view_as(p) for u, p in zip(updates, parameters, strict=True)], alpha=-lr)


class Together:
    """Several optimizers of torch that act as one."""

    def __init__(self, *parts):
        self.parts = parts

    def step(self, lr):
        """One step at this learning rate; gradients are cleared."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = lr
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
