"""Muon for the blocks' matrices (Jordan et al. 2024, scaled as in arXiv:2502.16982), Adam for the rest."""

import torch
from torch import nn

MOMENTUM = 0.95
BETAS = (0.9, 0.98)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


class Optimizer:
    """Two update rules under one learning rate factor; state is a plain dict of tensors, so it saves anywhere."""

    def __init__(self, model: nn.Module, muon_rate: float, adam_rate: float):
        self.parameters = dict(model.named_parameters())
        self.rates = {n: muon_rate if is_matrix(n, p) else adam_rate for n, p in self.parameters.items()}
        self.state: dict[str, tuple[torch.Tensor, ...]] = {
            n: (torch.zeros_like(p),) if is_matrix(n, p) else (torch.zeros_like(p), torch.zeros_like(p))
            for n, p in self.parameters.items()
        }

    @torch.no_grad()
    def step(self, number: int, factor: float) -> None:
        """One update at rate * factor; `number` counts from 1 since the state was zero (Adam's bias correction)."""
        for name, parameter in self.parameters.items():
            rule = muon if is_matrix(name, parameter) else adam
            parameter -= self.rates[name] * factor * rule(parameter.grad, self.state[name], number)
            parameter.grad = None


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """True for the weights that Muon takes: matrices inside the blocks."""
    return parameter.ndim == 2 and "_blocks." in name


def muon(gradient: torch.Tensor, state: tuple[torch.Tensor, ...], number: int) -> torch.Tensor:
    """Nesterov momentum, orthogonalised, at the root mean square of an Adam update (0.2)."""
    (momentum,) = state
    momentum.mul_(MOMENTUM).add_(gradient)
    return 0.2 * max(gradient.shape) ** 0.5 * orthogonalise(gradient + MOMENTUM * momentum)


def adam(gradient: torch.Tensor, state: tuple[torch.Tensor, ...], number: int) -> torch.Tensor:
    """Adam's direction (Kingma and Ba 2015)."""
    mean, square = state
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient.square(), 1 - BETAS[1])
    return mean / (1 - BETAS[0] ** number) / ((square / (1 - BETAS[1] ** number)).sqrt() + 1e-8)


def orthogonalise(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Nearly U V^T of `matrix` = U S V^T, by Newton-Schulz on the smaller Gram matrix (a third of the usual cost)."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    gram = wide @ wide.T
    total = identity = torch.eye(len(gram))
    for _ in range(iterations):
        factor = a * identity + b * gram + c * gram @ gram
        total = factor @ total
        gram = factor @ gram @ factor
    wide = total @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T
