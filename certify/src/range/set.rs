//! What is known of a tensor: a ball around a centre, a bound on each element, and, where only few
//! operations made it, which means it is a sum of.

use super::hull::Hull;
use crate::spectral::{gamma, vector_norm};
use crate::upper::{Upper, abs, count};

/// A token (the whole of an image or a vector) is `c + γ ∘ z` with `‖z‖ ≤ radius`, and its elements
/// are at most `elements` in absolute value. Both hold for means of such tokens as well.
#[derive(Clone)]
pub(super) struct Set {
    /// c, as it was computed: what rounding took is part of the radius. None is 0.
    pub(super) centre: Option<Vec<f64>>,
    /// γ of a norm just passed, with its name.
    pub(super) gain: Option<(String, Vec<f64>)>,
    /// Whether the elements of z add up to 0.
    pub(super) centred: bool,
    /// Bound on the ℓ2 norm of z.
    pub(super) radius: Upper,
    /// Bounds on the absolute values of the elements.
    pub(super) elements: Vec<Upper>,
    /// The means that it is a sum of, if they are known.
    pub(super) hull: Option<Hull>,
}

impl Set {
    /// All tokens of this ball around 0 and within these elements.
    pub(super) fn ball(radius: Upper, elements: Vec<Upper>) -> Self {
        let radius = radius.min(norm(&elements));
        let elements = elements.into_iter().map(|x| x.min(radius)).collect();
        Self { centre: None, gain: None, centred: false, radius, elements, hull: None }
    }

    /// The same, known as a sum of means.
    pub(super) fn with_hull(self, hull: Option<Hull>) -> Self {
        Self { hull, ..self }
    }

    /// The means, or the ball.
    fn means(&self) -> Hull {
        let ball = || {
            let centre = self.centre.clone().unwrap_or_else(|| vec![0.0; self.width()]);
            Hull::ball(centre, self.spread())
        };
        self.hull.clone().unwrap_or_else(ball)
    }

    /// Bound on the ℓ2 norm of the token.
    pub(super) fn size(&self) -> Upper {
        let centre = self.centre.as_ref().map_or(Upper::ZERO, |c| vector_norm(c));
        (centre + self.spread()).min(norm(&self.elements))
    }

    /// Bound on the ℓ2 norm of `γ ∘ z`.
    fn spread(&self) -> Upper {
        let largest = |gain: &[f64]| gain.iter().fold(Upper::ZERO, |m, x| m.max(abs(*x)));
        self.radius * self.gain.as_ref().map_or(Upper::ONE, |(_, gain)| largest(gain))
    }

    pub(super) fn width(&self) -> usize {
        self.elements.len()
    }

    /// The same with the gain in the ball.
    pub(super) fn flat(self) -> Self {
        let radius = self.spread();
        let centred = self.centred && self.gain.is_none();
        Self { gain: None, centred, radius, ..self }
    }

    /// `factor · x`
    pub(super) fn scaled(self, factor: f64) -> Self {
        let zero = Self {
            centre: None,
            gain: None,
            centred: true,
            radius: Upper::ZERO,
            elements: vec![Upper::ZERO; self.width()],
            hull: None,
        };
        self.plus(factor, zero, 0.0)
    }

    /// `a x + b y`
    pub(super) fn plus(self, a: f64, other: Self, b: f64) -> Self {
        let (x, y) = (self.flat(), other.flat());
        let known = (a != 0.0 && x.hull.is_some()) || (b != 0.0 && y.hull.is_some());
        let hull = known.then(|| x.means().plus(a, &y.means(), b)).flatten();
        let (sa, sb) = (abs(a), abs(b));
        let mut radius = sa * x.radius + sb * y.radius;
        let mut centred = x.centred && y.centred;
        let centre = match (x.centre, y.centre) {
            (None, None) => None,
            (c, d) => {
                centred = false;
                let zero = || vec![0.0; x.elements.len()];
                let (c, d) = (c.unwrap_or_else(zero), d.unwrap_or_else(zero));
                let sum = c.iter().zip(&d).map(|(c, d)| a * c + b * d).collect();
                let size: Vec<f64> =
                    c.iter().zip(&d).map(|(c, d)| (a * c).abs() + (b * d).abs()).collect();
                radius = radius + gamma(4) * vector_norm(&size) + tiny(size.len());
                Some(sum)
            }
        };
        let elements: Vec<Upper> =
            x.elements.iter().zip(&y.elements).map(|(x, y)| sa * *x + sb * *y).collect();
        let mut out = Self { centre, gain: None, centred, radius, elements, hull };
        out.tidy();
        out
    }

    /// Makes the bounds on elements and on the whole agree.
    pub(super) fn tidy(&mut self) {
        let spread = self.spread();
        match &self.centre {
            Some(centre) => {
                for (x, c) in self.elements.iter_mut().zip(centre) {
                    *x = x.min(abs(*c) + spread);
                }
                // A ball around 0 that is smaller than that around a centre.
                let around = norm(&self.elements);
                if self.gain.is_none() && around < self.radius {
                    (self.centre, self.radius, self.centred) = (None, around, false);
                }
            }
            None => {
                self.elements.iter_mut().for_each(|x| *x = x.min(spread));
                if self.gain.is_none() {
                    self.radius = self.radius.min(norm(&self.elements));
                }
            }
        }
    }

    /// The same, within these bounds on its elements too.
    pub(super) fn within(&mut self, elements: &[Upper]) {
        self.elements.iter_mut().zip(elements).for_each(|(x, y)| *x = x.min(*y));
        self.tidy();
    }
}

/// The norm of a vector of bounds.
pub(super) fn norm(x: &[Upper]) -> Upper {
    x.iter().fold(Upper::ZERO, |sum, x| sum + *x * *x).sqrt()
}

/// The largest of a list of bounds.
pub(super) fn largest(x: &[Upper]) -> Upper {
    x.iter().fold(Upper::ZERO, |max, x| max.max(*x))
}

/// More than what underflows in n numbers, as a norm and as a sum.
pub(super) fn tiny(n: usize) -> Upper {
    count(n + 1) * Upper::from_f64(f64::MIN_POSITIVE)
}
