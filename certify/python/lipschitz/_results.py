"""What a search and an attack give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy


class Found(NamedTuple):
    """The steepest pair of inputs that a search found: `found <= truth <= certified`, l2 to l2.

    >>> found = lipschitz.probe(model, inputs, seconds=5)          # doctest: +SKIP
    >>> found.certified / found.found                              # doctest: +SKIP
    1.41...
    """

    found: float
    certified: float
    a: "numpy.ndarray"
    b: "numpy.ndarray"


class Robustness(NamedTuple):
    """Shares of inputs at each radius: certified <= truth <= attacked <= clean.

    >>> lipschitz.robust(model, images, classes, eps=[36 / 255]).certified     # doctest: +SKIP
    array([0.354])
    """

    eps: "numpy.ndarray"
    clean: "numpy.ndarray"
    attacked: "numpy.ndarray"
    certified: "numpy.ndarray"


class Radii(NamedTuple):
    """Per input: the decision, its margin, the distance within which it provably stays, that by the
    global constant, and the smallest distance at which an attack changed it, or NaN. The decision of a
    network with one output never changes: its margin and radii are the largest float.

    >>> lipschitz.local(model, images).radius                      # doctest: +SKIP
    array([0.31, 0.07])
    """

    decision: "numpy.ndarray"
    margin: "numpy.ndarray"
    radius: "numpy.ndarray"
    by_constant: "numpy.ndarray"
    attacked: "numpy.ndarray"
