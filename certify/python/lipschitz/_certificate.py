"""A certificate as an object."""

from __future__ import annotations

import math
import sys
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

if TYPE_CHECKING:
    import numpy

    from ._lipschitz import Network


class Norms(NamedTuple):
    """The norms of weights that a proof uses: `lower[i] <= names[i] <= upper[i]`.

    >>> lipschitz.certify("runs/first").norms.upper.max()          # doctest: +SKIP
    14.19938...
    """

    names: list[str]
    lower: "numpy.ndarray"
    upper: "numpy.ndarray"


def number(bound: dict[str, Any]) -> float:
    """A bound as the float that is no smaller: `mantissa * 2**exponent`, infinite beyond floats."""
    if bound["mantissa"] is None:
        return math.inf
    try:
        value = math.ldexp(bound["mantissa"], bound["exponent"])
    except OverflowError:
        return math.inf
    # Below the normal numbers `ldexp` may round down.
    return max(value, sys.float_info.min) if bound["mantissa"] > 0.0 else value


class Certificate:
    """A theorem about one set of weights, with what proves it.

    >>> certificate = lipschitz.certify("runs/first")              # doctest: +SKIP
    >>> certificate                                                # doctest: +SKIP
    <Certificate: L <= 7.1035 RMS -> RMS, 7.2136 l2 -> l2, proven>
    >>> certificate.verify()                                       # doctest: +SKIP
    """

    def __init__(self, document: str, network: Optional["Network"] = None, keep: Any = None):
        import json

        self._text = document
        self._network = network
        # What the network reads lives as long as the certificate.
        self._keep = keep
        try:
            self.document: dict[str, Any] = json.loads(document)
            self._rms, self._l2 = (self.document[key] for key in ("rms", "l2"))
            number(self._rms), number(self._l2)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            from ._lipschitz import Error

            raise Error(f"this is no certificate: {error}") from None

    @staticmethod
    def from_json(document: str) -> "Certificate":
        """The certificate in a document, as `to_json` or `certify bound --json` wrote it.

        >>> Certificate.from_json(open("first.json").read()).verify("runs/first")  # doctest: +SKIP
        """
        return Certificate(document)

    @property
    def rms(self) -> float:
        """The constant from RMS norm to RMS norm: no output moves further than this times a change."""
        return number(self._rms)

    @property
    def l2(self) -> float:
        """The constant from l2 norm to l2 norm."""
        return number(self._l2)

    @property
    def bound(self) -> float:
        """The same as `l2`: the constant for inputs as they are, without any scale."""
        return self.l2

    @property
    def log10(self) -> float:
        """The logarithm of `l2`, also where the constant is beyond floats."""
        return math.inf if self._l2["log10"] is None else self._l2["log10"]

    @property
    def margin(self) -> float:
        """The constant of the difference of any two outputs, from l2 norm."""
        return number(self.document["margin"]["l2"])

    @property
    def proven(self) -> bool:
        """Whether it is a proof; false for an estimate."""
        return bool(self.document["proven"])

    @property
    def radius(self) -> float:
        """The l2 radius of the ball that the theorem covers; infinite for all inputs."""
        return number(self.document["domain"]["radius"])

    @property
    def norms(self) -> Norms:
        """The norms of weights that the proof uses, as arrays."""
        import numpy

        rows = self.document["weights"]
        lower, upper = [row["lower"] for row in rows], [number(row["upper"]) for row in rows]
        return Norms([row["name"] for row in rows], numpy.array(lower), numpy.array(upper))

    def verify(self, model: Any = None, graph: Any = None, **options: Any) -> None:
        """Proves every number again from the weights, trusting nothing in the certificate.

        Without a model, from the weights that it was made of; model, graph and options are those of
        `certify`. Raises `Violated` if it does not hold.

        >>> certificate.verify("runs/first")                       # doctest: +SKIP
        """
        from ._lipschitz import Error
        from ._models import network_of

        network, keep = self._network, self._keep
        if model is not None:
            network, keep = network_of(model, graph, **options)
        if network is None:
            raise Error("a certificate from a document knows no weights; give the model")
        network.verify(self._text)
        del keep

    def to_json(self) -> str:
        """The document, which `certify verify` and `Certificate.from_json` read."""
        return self._text

    def save(self, path: Any) -> None:
        """Writes the document to a file."""
        from ._lipschitz import Error

        try:
            with open(os.fspath(path), "w", encoding="utf-8") as file:
                file.write(self._text)
        except TypeError:
            raise Error(f"a {type(path).__name__} is no path to write to") from None
        except OSError as error:
            raise Error(f"{path}: {error.strerror}") from None

    def __repr__(self) -> str:
        said = "proven" if self.proven else "NOT PROVEN"
        rms, l2 = (_shown(bound) for bound in (self._rms, self._l2))
        return f"<Certificate: L <= {rms} RMS -> RMS, {l2} l2 -> l2, {said}>"

    def _repr_html_(self) -> str:
        import html

        said = "certified" if self.proven else "NOT PROVEN"
        rows = "".join(
            "<tr>"
            f"<td style='text-align:left'>{html.escape(row['path'] or row['kind'])}</td>"
            f"<td>{_shown(row['lipschitz'])}</td><td>{_shown(row['cumulative'])}</td>"
            f"<td style='text-align:left'>{html.escape(row['rule'])}</td></tr>"
            for row in self.document["nodes"]
        )
        domain = html.escape(self.document["domain"]["text"])
        return (
            f"<p><b>L &le; {_shown(self._rms)}</b> RMS &rarr; RMS, "
            f"<b>{_shown(self._l2)}</b> &#8467;<sub>2</sub> &rarr; &#8467;<sub>2</sub>, {said}<br>{domain}</p>"
            "<table><thead><tr><th>node</th><th>L</th><th>L so far</th><th>rule</th></tr></thead>"
            f"<tbody>{rows}</tbody></table>"
        )


def _shown(bound: dict[str, Any]) -> str:
    """A few digits of a bound, rounded up."""
    value = number(bound)
    if math.isinf(value):
        power = bound["log10"]
        return "inf" if power is None or bound["mantissa"] is None else f"10^{math.ceil(power * 1e4) / 1e4:.4f}"
    text = f"{value:.5g}"
    if float(text) < value:
        power = math.floor(math.log10(value)) - 4
        text = f"{float(text) + 10.0**power:.5g}"
    return text
