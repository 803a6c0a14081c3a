//! How far a value may be from its reference, the one that was computed at the input.

use crate::upper::Upper;

/// Bounds on the ℓ2 norm of the deviation of each token, and of all tokens together.
#[derive(Clone, Debug)]
pub(super) struct Spread {
    pub(super) each: Vec<Upper>,
    pub(super) total: Upper,
}

impl Spread {
    /// Both bounds, each made no larger than the other allows.
    pub(super) fn new(mut each: Vec<Upper>, total: Upper) -> Self {
        let total = total.min(root_of_squares(&each));
        each.iter_mut().for_each(|x| *x = x.min(total));
        Self { each, total }
    }

    /// Of tokens alone: all together are at most the root of the sum of squares.
    pub(super) fn of(each: Vec<Upper>) -> Self {
        Self::new(each, Upper::INFINITY)
    }

    /// Behind a map of this Lipschitz constant, token by token, which was computed with these errors.
    pub(super) fn through(&self, constant: Upper, errors: &[Upper]) -> Self {
        let each = self.each.iter().zip(errors).map(|(x, e)| constant * *x + *e).collect();
        Self::new(each, constant * self.total + root_of_squares(errors))
    }

    /// `|a| x + |b| y`, computed with these errors.
    pub(super) fn blend(&self, a: Upper, other: &Self, b: Upper, errors: &[Upper]) -> Self {
        let pairs = self.each.iter().zip(&other.each);
        let each = pairs.zip(errors).map(|((x, y), e)| a * *x + b * *y + *e).collect();
        Self::new(each, a * self.total + b * other.total + root_of_squares(errors))
    }

    /// The largest of a token.
    pub(super) fn largest(&self) -> Upper {
        self.each.iter().fold(Upper::ZERO, |m, x| m.max(*x))
    }
}

/// `√Σ x²`
pub(super) fn root_of_squares(x: &[Upper]) -> Upper {
    x.iter().fold(Upper::ZERO, |sum, x| sum + *x * *x).sqrt()
}
