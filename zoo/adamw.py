"""AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), each parameter at a rate and a decay of its own.

torch's optimiser class costs more to import (its compiler comes along) than a head takes to train, so its fused
kernel is called by its functional form. That wants one rate a parameter: where the rate is a tensor, so that candidates
stacked along an axis each have theirs, the same arithmetic stands here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    Rate: TypeAlias = float | torch.Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """The moments of `parameters`; `rates` and `decays` are a number, or a tensor that broadcasts, for each of them."""

    def __init__(self, parameters: "Sequence[torch.Tensor]", rates: "Sequence[Rate]", decays: "Sequence[Rate]") -> None:
        import torch

        self.parameters = parameters
        self.rates = rates
        self.decays = decays
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = 0

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, factor: float) -> None:
        """One update from the gradients, every rate times `factor`; a parameter without a gradient stays."""
        import torch
        from torch.optim.adamw import adamw

        self.steps += 1
        first, second = (1 - beta**self.steps for beta in BETAS)
        with torch.no_grad():
            rows = zip(self.parameters, self.means, self.squares, self.rates, self.decays, strict=True)
            for parameter, mean, square, rate, decay in rows:
                if parameter.grad is None:
                    continue
                lr = rate * factor
                if not isinstance(lr, torch.Tensor) and not isinstance(decay, torch.Tensor):
                    before = torch.tensor(self.steps - 1.0, device=parameter.device)
                    adamw(
                        [parameter], [parameter.grad], [mean], [square], [], [before], fused=True, amsgrad=False,
                        beta1=BETAS[0], beta2=BETAS[1], eps=EPSILON, lr=lr, weight_decay=decay, maximize=False,
                    )  # fmt: skip
                    continue
                mean.lerp_(parameter.grad, 1 - BETAS[0])
                square.mul_(BETAS[1]).addcmul_(parameter.grad, parameter.grad, value=1 - BETAS[1])
                root = (square / second).sqrt_().add_(EPSILON)
                parameter.mul_(1 - lr * decay)
                parameter.sub_((mean / root).mul_(lr / first))

    def state(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every moment by name, and the number of steps."""
        import torch

        yield "steps", torch.tensor(self.steps)
        for place, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            yield f"{place}.mean", mean
            yield f"{place}.square", square

    def restore(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Put back what `state` gave."""
        self.steps = int(state["steps"])
        for place, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            mean.copy_(state[f"{place}.mean"])
            square.copy_(state[f"{place}.square"])
