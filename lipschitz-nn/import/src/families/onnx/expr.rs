//! Elementwise functions as exporters spell them: sums of products of a polynomial and of known
//! functions, in one variable. What is equal as such is the same, in whatever order it was written.

use lipschitz_nn::graph::{Function, Node, Op};

/// A function that an operator has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Phi {
    /// One that a node has as well.
    Known(Function),
    Erf,
    /// Clipped to this range.
    Clip(f64, f64),
}

/// `Σ polynomial(x) · Π φ(expression(x))`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expr(Vec<Term>);

#[derive(Clone, Debug, PartialEq)]
struct Term {
    /// The coefficients of 1, x, x², …
    poly: Vec<f64>,
    factors: Vec<(Phi, Expr)>,
}

/// How large an expression may become, in terms, degrees and factors.
const LARGEST: usize = 64;

/// How far a constant inside a function may be from what it stands for, relative to it: it is the product of
/// two that were rounded to f32, with half a unit in the last place, 2⁻²⁴, each. With k in place of 1, the
/// function is f(k·x)/k, which has the constant of f.
const ROUNDED: f64 = 2e-7;

/// The factor of x³ in the tanh of a GELU.
const CUBE: f64 = 0.044715;

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() <= ROUNDED * b.abs()
}

impl Expr {
    /// `x`
    pub(super) fn x() -> Self {
        Self::linear(0.0, 1.0)
    }

    /// `shift + factor·x`
    pub(super) fn linear(shift: f64, factor: f64) -> Self {
        Self(vec![Term { poly: vec![shift, factor], factors: Vec::new() }]).trimmed()
    }

    /// `φ(self)`
    pub(super) fn apply(self, phi: Phi) -> Self {
        Self(vec![Term { poly: vec![1.0], factors: vec![(phi, self)] }])
    }

    fn trimmed(mut self) -> Self {
        for term in &mut self.0 {
            while term.poly.last() == Some(&0.0) {
                term.poly.pop();
            }
        }
        self.0.retain(|term| !term.poly.is_empty());
        self
    }

    fn size(&self) -> usize {
        let term = |t: &Term| {
            t.poly.len() + t.factors.iter().map(|(_, inner)| 1 + inner.size()).sum::<usize>()
        };
        self.0.iter().map(term).sum()
    }

    fn checked(self) -> Option<Self> {
        (self.size() <= LARGEST).then_some(self)
    }

    pub(super) fn add(&self, other: &Self) -> Option<Self> {
        let mut out = self.clone();
        for term in &other.0 {
            match out.0.iter_mut().find(|t| same(&t.factors, &term.factors)) {
                Some(t) => {
                    let length = t.poly.len().max(term.poly.len());
                    t.poly.resize(length, 0.0);
                    t.poly.iter_mut().zip(&term.poly).for_each(|(a, b)| *a += b);
                }
                None => out.0.push(term.clone()),
            }
        }
        out.trimmed().checked()
    }

    pub(super) fn times(&self, other: &Self) -> Option<Self> {
        let mut out = Self(Vec::new());
        for a in &self.0 {
            for b in &other.0 {
                let mut poly = vec![0.0; a.poly.len() + b.poly.len() - 1];
                for (i, x) in a.poly.iter().enumerate() {
                    for (y, at) in b.poly.iter().zip(poly.iter_mut().skip(i)) {
                        *at += x * y;
                    }
                }
                let factors = [&a.factors[..], &b.factors].concat();
                out = out.add(&Self(vec![Term { poly, factors }]))?;
            }
        }
        out.checked()
    }

    /// This function of another one.
    pub(super) fn of(&self, inner: &Self) -> Option<Self> {
        let mut out = Self(Vec::new());
        for term in &self.0 {
            let mut sum = Self(Vec::new());
            // Horner's rule.
            for c in term.poly.iter().rev() {
                sum = sum.times(inner)?.add(&Self::linear(*c, 0.0))?;
            }
            for (phi, argument) in &term.factors {
                sum = sum.times(&argument.of(inner)?.apply(*phi))?;
            }
            out = out.add(&sum)?;
        }
        out.checked()
    }

    /// `a` and `b` of `a + b·x`.
    pub(super) fn as_linear(&self) -> Option<(f64, f64)> {
        match self.0.as_slice() {
            [] => Some((0.0, 0.0)),
            [Term { poly, factors }] if factors.is_empty() && poly.len() <= 2 => {
                Some((poly[0], poly.get(1).copied().unwrap_or(0.0)))
            }
            _ => None,
        }
    }

    /// Whether this is the square.
    pub(super) fn is_square(&self) -> bool {
        *self == Self(vec![Term { poly: vec![0.0, 0.0, 1.0], factors: Vec::new() }])
    }

    /// Takes the part without functions away: `a`, `b` of `a + b·x`, and the rest.
    fn split(&self) -> Option<(f64, f64, Vec<&Term>)> {
        let (plain, rest): (Vec<&Term>, Vec<&Term>) =
            self.0.iter().partition(|term| term.factors.is_empty());
        match plain.as_slice() {
            [] => Some((0.0, 0.0, rest)),
            [term] if term.poly.len() <= 2 => {
                Some((term.poly[0], term.poly.get(1).copied().unwrap_or(0.0), rest))
            }
            _ => None,
        }
    }

    /// The nodes that compute it, and the number that is to be added to each element; none if no
    /// nodes are known to.
    pub(super) fn nodes(&self) -> Option<(Vec<Node>, f64)> {
        let (shift, slope, rest) = self.split()?;
        let scale = |factor: f64| Node::new("", Op::Scale { factor });
        let [term] = rest.as_slice() else {
            // `a + b·x` alone.
            let nodes = if slope == 1.0 { Vec::new() } else { vec![scale(slope)] };
            return rest.is_empty().then_some((nodes, shift));
        };
        let (body, left) = term.nodes(slope)?;
        if left == 0.0 {
            return Some((body, shift));
        }
        Some((vec![Node::new("", Op::Residual { skip: left, branch: 1.0, body })], shift))
    }
}

/// Whether two products are of the same functions, in any order.
fn same(a: &[(Phi, Expr)], b: &[(Phi, Expr)]) -> bool {
    let mut left: Vec<&(Phi, Expr)> = b.iter().collect();
    a.len() == b.len()
        && a.iter().all(|x| {
            let at = left.iter().position(|y| *y == x);
            at.map(|i| left.swap_remove(i)).is_some()
        })
}

impl Term {
    /// The nodes of this term and of `slope·x`, and what is left of the slope.
    fn nodes(&self, slope: f64) -> Option<(Vec<Node>, f64)> {
        use Function::{GeluErf, GeluTanh, HardSigmoid, HardSwish, Mish, QuickGelu, Relu, Relu2};
        let act = |function, scale| Node::new("", Op::Activation { function, scale });
        let scaled = |factor: f64, rest: Vec<Node>| -> Vec<Node> {
            let first = Node::new("", Op::Scale { factor });
            if factor == 1.0 { rest } else { std::iter::once(first).chain(rest).collect() }
        };
        // The factor of a polynomial c·x^n.
        let power = |n: usize| match self.poly.split_last() {
            Some((c, low)) if low.len() == n && low.iter().all(|x| *x == 0.0) => Some(*c),
            _ => None,
        };
        let [(phi, inner), others @ ..] = self.factors.as_slice() else { return None };
        if let [(second, argument)] = others {
            // relu(x)²
            let relu = Phi::Known(Relu);
            let square = *phi == relu && *second == relu && inner == argument;
            let (0.0, k) = inner.as_linear()? else { return None };
            return square
                .then_some(power(0))
                .flatten()
                .map(|c| (scaled(k, vec![act(Relu2, c)]), slope));
        }
        if !others.is_empty() {
            return None;
        }
        if let (Some(c), Some((0.0, k))) = (power(0), inner.as_linear())
            && k != 0.0
        {
            let nodes = match *phi {
                Phi::Known(function) => vec![act(function, c)],
                Phi::Erf => return None,
                Phi::Clip(low, high) if low == -high => clip(high, c),
                Phi::Clip(0.0, f64::INFINITY) => vec![act(Relu, c)],
                Phi::Clip(0.0, high) => {
                    std::iter::once(act(Relu, 1.0)).chain(clip(high, c)).collect()
                }
                Phi::Clip(..) => return None,
            };
            return Some((scaled(k, nodes), slope));
        }
        let linear = inner.as_linear();
        match (*phi, linear) {
            // clip(x/6 + ½, 0, 1), also as clip(x + 3, 0, 6)/6, and x times that.
            (Phi::Clip(0.0, high), Some((a, b))) if a == high / 2.0 && near(b, high / 6.0) => {
                let function = if power(0).is_some() { HardSigmoid } else { HardSwish };
                let c = power(0).or(power(1))? * high;
                // That of a hard sigmoid is steeper with k, and never less than it says.
                let k = b * 6.0 / high;
                let c = if function == HardSigmoid { c * k.max(1.0) } else { c };
                return Some((vec![act(function, c)], slope));
            }
            (Phi::Known(HardSigmoid), Some((0.0, 1.0))) => {
                return power(1).map(|c| (vec![act(HardSwish, c)], slope));
            }
            _ => {}
        }
        let c = power(1)?;
        match (*phi, linear) {
            // c·x·σ(k·x) = (c/k)·silu(k·x)
            (Phi::Known(Function::Sigmoid), Some((0.0, k))) if k != 0.0 => Some((
                match k {
                    k if near(k, 1.702) => vec![act(QuickGelu, c)],
                    k => scaled(k, vec![act(Function::Silu, c / k)]),
                },
                slope,
            )),
            // x·(1 + erf(x/√2))·c = 2c·gelu(x)
            (Phi::Erf, Some((0.0, k))) if near(k, std::f64::consts::FRAC_1_SQRT_2) => {
                Some((vec![act(GeluErf, 2.0 * c)], slope - c))
            }
            (Phi::Known(Function::Tanh), None) => {
                let [Term { poly, factors }] = inner.0.as_slice() else { return None };
                if let ([(Phi::Known(Function::Softplus), argument)], [1.0]) =
                    (factors.as_slice(), poly.as_slice())
                {
                    return (*argument == Expr::x()).then(|| (vec![act(Mish, c)], slope));
                }
                // x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))·c = 2c·gelu(x)
                let root = (2.0 / std::f64::consts::PI).sqrt();
                match poly.as_slice() {
                    [0.0, a, 0.0, b]
                        if factors.is_empty()
                            && near(*a, root)
                            && near(*b, a * CUBE)
                            // No steeper than with the constant itself.
                            && *b <= a * CUBE * (1.0 + 1e-12) =>
                    {
                        Some((vec![act(GeluTanh, 2.0 * c)], slope - c))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Clipped to ±limit, then `factor` times.
fn clip(limit: f64, factor: f64) -> Vec<Node> {
    let clip = Node::new("", Op::Clip { limit });
    let scale = Node::new("", Op::Scale { factor });
    if factor == 1.0 { vec![clip] } else { vec![clip, scale] }
}
