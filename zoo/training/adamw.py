"""AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101) with a rate and a decay for each parameter.

Importing torch's optimiser class imports the compiler, which takes longer than training a head. The fused kernel of
that class is therefore called directly. The kernel takes one number as rate of a parameter, and for a small parameter a
call costs more than the update. For small parameters, and for rates that are tensors (candidates stacked along an
axis), this file does the same arithmetic in torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    Rate: TypeAlias = float | torch.Tensor

#: The kernel updates parameters with a common rate and decay if together they have at least this many numbers.
LARGE = 50_000
BETAS, EPSILON = (0.9, 0.999), 1e-8


class AdamW:
    """AdamW for `parameters`; `rates` and `decays` have a number or a broadcastable tensor for each parameter."""

    def __init__(self, parameters: "Sequence[torch.Tensor]", rates: "Sequence[Rate]", decays: "Sequence[Rate]") -> None:
        import torch

        self.parameters = parameters
        self.rates = rates
        self.decays = decays
        self.means = [torch.zeros_like(parameter) for parameter in parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in parameters]
        self.steps = 0
        #: Indices of the parameters that one call of the kernel updates, by their rate and decay.
        self._shared: dict[tuple[float, float], list[int]] = {}
        #: Indices of the other parameters: small ones, and those whose rate or decay is a tensor.
        self._own: list[int] = []
        for index, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
            if isinstance(rate, torch.Tensor) or isinstance(decay, torch.Tensor):
                self._own.append(index)
            else:
                self._shared.setdefault((rate, decay), []).append(index)
        for shared, indices in list(self._shared.items()):
            if sum(parameters[index].numel() for index in indices) < LARGE:
                self._own += self._shared.pop(shared)

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, factor: float) -> None:
        """Update the parameters from their gradients, every rate times `factor`; without a gradient they stay."""
        import torch

        self.steps += 1
        with torch.no_grad():
            for (rate, decay), indices in self._shared.items():
                if some := [index for index in indices if self.parameters[index].grad is not None]:
                    self._fused(some, rate * factor, decay)
            for index in self._own:
                if self.parameters[index].grad is not None:
                    self._each(index, factor)

    def _fused(self, indices: "Sequence[int]", lr: float, decay: float) -> None:
        """Update these parameters, which have gradients, with torch's kernel."""
        import torch
        from torch.optim.adamw import adamw

        parameters = [self.parameters[index] for index in indices]
        # The kernel increments each step count itself.
        before = [torch.tensor(self.steps - 1.0, device=parameter.device) for parameter in parameters]
        adamw(
            parameters, [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [self.means[index] for index in indices], [self.squares[index] for index in indices], [], before,
            fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], eps=EPSILON, lr=lr, weight_decay=decay,
            maximize=False,
        )  # fmt: skip

    def _each(self, index: int, factor: float) -> None:
        """Update one parameter, whose rate and decay may be tensors."""
        parameter, mean, square = self.parameters[index], self.means[index], self.squares[index]
        gradient, lr, decay = parameter.grad, self.rates[index] * factor, self.decays[index]
        first, second = (1 - beta**self.steps for beta in BETAS)
        mean.lerp_(gradient, 1 - BETAS[0])  # type: ignore[arg-type]
        square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])  # type: ignore[arg-type]
        root = (square / second).sqrt_().add_(EPSILON)
        parameter.mul_(1 - lr * decay)
        if isinstance(lr, float):
            parameter.addcdiv_(mean, root, value=-lr / first)
        else:
            parameter.sub_((mean / root).mul_(lr / first))

    def state(self) -> "Iterator[tuple[str, torch.Tensor]]":
        """Every moment by name, and the number of steps."""
        import torch

        yield "steps", torch.tensor(self.steps)
        for index, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            yield f"{index}.mean", mean
            yield f"{index}.square", square

    def restore(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Restore what `state` returned."""
        self.steps = int(state["steps"])
        for index, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            mean.copy_(state[f"{index}.mean"])
            square.copy_(state[f"{index}.square"])
