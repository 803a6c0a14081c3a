"""For PyTorch: training under a constraint, and proven norms of weights.

    >>> import torch, lipschitz.torch
    >>> layer = torch.nn.Linear(256, 64)
    >>> optimizer = torch.optim.AdamW(layer.parameters())
    >>> handle = lipschitz.torch.constrain(optimizer, sigma_max=1.0)
    >>> lipschitz.torch.rms_norm_upper(layer.weight) <= 1.0
    True
"""

from __future__ import annotations

import json
import math
from typing import Any, Iterable, Optional

import torch

from ._lipschitz import Constraint, Error
from ._lipschitz import spectral_norm_upper as _upper
from ._models import _number

__all__ = ["Constrained", "constrain", "rms_norm_upper", "spectral_norm_upper"]


def spectral_norm_upper(weight: torch.Tensor) -> float:
    """A proven upper bound on the largest singular value of a matrix, rounding included.

    >>> spectral_norm_upper(torch.diag(torch.tensor([3.0, 4.0]))) >= 4.0
    True
    """
    weight = _matrix(weight.detach().cpu())
    return _upper((weight.float() if weight.dtype == torch.bfloat16 else weight).numpy())


def rms_norm_upper(weight: torch.Tensor) -> float:
    """A proven upper bound on the RMS -> RMS norm, sqrt(inputs / outputs) times the spectral norm.

    >>> rms_norm_upper(torch.eye(2)) >= 1.0
    True
    """
    outputs, inputs = _matrix(weight).shape
    factor = math.nextafter(math.sqrt(inputs / outputs), math.inf) if hasattr(math, "nextafter") else (
        math.sqrt(inputs / outputs) * (1 + 2e-16)
    )
    return spectral_norm_upper(weight) * factor * (1 + 4e-16)


class Constrained:
    """What `constrain` gives: the weights that are held, and how they are let go."""

    def __init__(self, constraint: Constraint, weights: list[tuple[str, torch.Tensor, bool]]):
        self._constraint, self._weights = constraint, weights
        self._hook: Any = None

    def promise(self, weight: torch.Tensor) -> Optional[float]:
        """The largest RMS -> RMS norm that a matrix can have after any step, if one is promised; none for
        weights of 16 bits, whose rounding can take them above the cap, nor for tables and weights that are not held."""
        held = any(weight is own and not table for _, own, table in self._weights)
        if self._hook is None or not held or weight.dtype in (torch.bfloat16, torch.float16):
            return None
        outputs, inputs = _matrix(weight).shape
        return self._constraint.promise(outputs, inputs)

    def remove(self) -> None:
        """Lets the weights go: later steps are as without a constraint."""
        if self._hook is not None:
            self._hook.remove()

    def _change(self, change: Any) -> None:
        # The arrays are the memory of tensors on the CPU; others are copied there and back.
        held = [(name, _memory(weight), table) for name, weight, table in self._weights]
        # Weights of one type at a time.
        for dtype in {array.dtype for _, (array, _), _ in held}:
            change([(name, array, table) for name, (array, _), table in held if array.dtype == dtype])
        with torch.no_grad():
            for (_, weight, _), (_, (array, shared), _) in zip(self._weights, held):
                if not shared:
                    weight.copy_(torch.from_numpy(array).reshape(weight.shape))


def constrain(
    optimizer: torch.optim.Optimizer,
    *,
    sigma_max: Optional[float] = None,
    method: str = "spectral_normalize",
    parameters: Optional[Iterable[torch.Tensor]] = None,
    tables: Iterable[torch.Tensor] = (),
    **options: Any,
) -> Constrained:
    """Applies a weight constraint to an optimizer's matrices, at once and after each of its steps.

    `sigma_max` caps the RMS -> RMS norm of every matrix `[outputs, inputs]`, which is sqrt(inputs /
    outputs) times its spectral norm. `method` and `options` are those of the section `[constraint]`
    of a config: `spectral_normalize`, `spectral_hard_cap`, `spectral_soft_cap`, `svd_clip`, `stiefel`
    promise the cap under any optimizer, for weights of 32 or 64 bits. `parameters` are the weights to constrain, by default all of
    two axes, and of four, the kernels of convolutions, as matrices `[outputs, inputs * k * k]`; `tables` those whose rows are vectors, as of an embedding, which are kept at RMS norm 1.

    >>> layer = torch.nn.Linear(8, 8)
    >>> sgd = torch.optim.SGD(layer.parameters(), lr=10.0)
    >>> held = constrain(sgd, sigma_max=1.0)
    >>> layer(torch.ones(1, 8)).sum().backward()
    >>> sgd.step()
    >>> rms_norm_upper(layer.weight) <= 1.0
    True
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise Error(f"a {type(optimizer).__name__} is no optimizer; constrain the optimizer that trains the weights")
    section = {"method": method, **options}
    if sigma_max is not None:
        section["sigma_max"] = _number("sigma_max", sigma_max)
    try:
        constraint = Constraint(json.dumps(section))
    except TypeError as error:
        raise Error(f"the options of {method}: {error}") from None
    all_weights = [w for group in optimizer.param_groups for w in group["params"]]
    rows = {id(w) for w in tables}
    chosen = [w for w in all_weights if w.ndim in (2, 4)] if parameters is None else list(parameters)
    for weight in chosen:
        if weight.ndim not in (2, 4):
            raise Error(f"a weight of shape {tuple(weight.shape)} is no matrix")
        if not weight.is_floating_point():
            raise Error(f"a weight of shape {tuple(weight.shape)} has numbers of {weight.dtype}, and constraints are on real ones")
        if not any(weight is other for other in all_weights):
            raise Error(f"a weight of shape {tuple(weight.shape)} is not one of the optimizer's")
    if not chosen:
        raise Error("the optimizer has no matrices to constrain")
    if not rows <= {id(weight) for weight in chosen}:
        raise Error("tables: wants a list of weights that are constrained, and one of it is none of them")
    weights = [(str(i), weight, id(weight) in rows) for i, weight in enumerate(chosen)]
    held = Constrained(constraint, weights)
    held._change(constraint.project)

    def after(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        rate = max(float(group.get("lr", 0.0)) for group in optimizer.param_groups)
        held._change(lambda arrays: constraint.apply(arrays, rate))

    held._hook = optimizer.register_step_post_hook(after)
    return held


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """A matrix, or the kernel of a convolution as one."""
    if weight.ndim == 4:
        return weight.flatten(1)
    if weight.ndim != 2:
        raise Error(f"a weight of shape {tuple(weight.shape)} is no matrix")
    return weight


def _memory(weight: torch.Tensor) -> tuple[Any, bool]:
    """A weight as an array, and whether it is the weight's own memory."""
    plain = weight.detach()
    shared = plain.device.type == "cpu" and plain.dtype in (torch.float32, torch.float64)
    # A kernel that lies in another order is copied.
    shared &= plain.ndim == 2 or plain.is_contiguous()
    plain = _matrix(plain)
    if shared:
        return plain.numpy(), True
    if plain.dtype != torch.float64:
        plain = plain.float()
    return plain.cpu().numpy(), False
