"""AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), each parameter at a rate and a decay of its own.

torch's optimiser class costs more to import (its compiler comes along) than a head takes to train, so its fused
kernel is called by its functional form. That wants one rate a parameter, and for a small one the way there costs more
than the work: where the rate is a tensor, so that candidates stacked along an axis each have theirs, and for small
parameters the same arithmetic stands here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

    Rate: TypeAlias = float | torch.Tensor

#: Numbers from which on parameters of one rate are worth the way to the kernel.
LARGE = 50_000
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
        #: Places of the parameters that share their rate and decay, numbers both: one call of the kernel serves them.
        self._shared: dict[tuple[float, float], list[int]] = {}
        #: Those of the others: small ones, and those whose rate or decay is a tensor.
        self._own: list[int] = []
        for place, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
            if isinstance(rate, torch.Tensor) or isinstance(decay, torch.Tensor):
                self._own.append(place)
            else:
                self._shared.setdefault((rate, decay), []).append(place)
        for shared, places in list(self._shared.items()):
            if sum(parameters[place].numel() for place in places) < LARGE:
                self._own += self._shared.pop(shared)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self, factor: float) -> None:
        """One update from the gradients, every rate times `factor`; a parameter without a gradient stays."""
        import torch

        self.steps += 1
        with torch.no_grad():
            for (rate, decay), places in self._shared.items():
                self._fused(
                    [place for place in places if self.parameters[place].grad is not None], rate * factor, decay
                )
            for place in self._own:
                if self.parameters[place].grad is not None:
                    self._each(place, factor)

    def _fused(self, places: "Sequence[int]", lr: float, decay: float) -> None:
        """Update the parameters at these places, which have a gradient, by torch's kernel."""
        import torch
        from torch.optim.adamw import adamw

        if not places:
            return
        parameters = [self.parameters[place] for place in places]
        # The kernel counts them up, each by one.
        before = [torch.tensor(self.steps - 1.0, device=parameter.device) for parameter in parameters]
        adamw(
            parameters, [parameter.grad for parameter in parameters],  # type: ignore[misc]
            [self.means[place] for place in places], [self.squares[place] for place in places], [], before,
            fused=True, amsgrad=False, beta1=BETAS[0], beta2=BETAS[1], eps=EPSILON, lr=lr, weight_decay=decay,
            maximize=False,
        )  # fmt: skip

    def _each(self, place: int, factor: float) -> None:
        """Update the parameter at this place; its slices may have rates and decays of their own."""
        parameter, mean, square = self.parameters[place], self.means[place], self.squares[place]
        gradient, lr, decay = parameter.grad, self.rates[place] * factor, self.decays[place]
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
        for place, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            yield f"{place}.mean", mean
            yield f"{place}.square", square

    def restore(self, state: "Mapping[str, torch.Tensor]") -> None:
        """Put back what `state` gave."""
        self.steps = int(state["steps"])
        for place, (mean, square) in enumerate(zip(self.means, self.squares, strict=True)):
            mean.copy_(state[f"{place}.mean"])
            square.copy_(state[f"{place}.square"])
