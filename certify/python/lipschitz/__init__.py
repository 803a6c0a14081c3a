"""Proven Lipschitz constants of neural networks, and training under them.

    >>> import lipschitz
    >>> certificate = lipschitz.certify("runs/first")              # doctest: +SKIP
    >>> certificate.l2                                             # doctest: +SKIP
    6.9035...

`certify` takes a path, a graph with arrays, a `torch.nn.Module` of known kinds, or a Hugging Face model.
`lipschitz.torch` has what trains under a constraint. Everything that is computed is computed without
Python's interpreter lock, on all cores.
"""

from ._certificate import Certificate, Norms
from ._lipschitz import Error, Violated, spectral_norm_upper
from ._models import certify, load, local, probe, robust, run
from ._results import Found, Radii, Robustness

__all__ = [
    "Certificate",
    "Error",
    "Found",
    "Norms",
    "Radii",
    "Robustness",
    "Violated",
    "certify",
    "load",
    "local",
    "probe",
    "robust",
    "run",
    "spectral_norm_upper",
]
