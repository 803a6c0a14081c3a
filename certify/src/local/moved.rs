//! Elements that go elsewhere, around a computed input.

use super::functional::Functionals;
use super::spread::Spread;
use crate::upper::Upper;

/// A selection or permutation of elements.
pub(super) enum Moved {
    /// Tokens that are dropped or added around: output token i is input token `from[i]`, or new.
    Tokens { from: Vec<Option<usize>>, inputs: usize },
    /// All tokens as one.
    Flat { tokens: usize, width: usize },
    /// One image as squares: output element i of token t is element `from[t·width + i]`.
    Squares { from: Vec<usize>, tokens: usize, width: usize },
}

impl Moved {
    /// Which element of an image is where, row by row of squares.
    pub(super) fn squares([channels, height, width]: [usize; 3], size: usize) -> Self {
        let (rows, columns) = (height / size, width / size);
        let mut from = Vec::with_capacity(channels * height * width);
        for r in 0..rows {
            for q in 0..columns {
                for c in 0..channels {
                    for i in 0..size {
                        for j in 0..size {
                            from.push((c * height + r * size + i) * width + q * size + j);
                        }
                    }
                }
            }
        }
        Self::Squares { from, tokens: rows * columns, width: channels * size * size }
    }

    pub(super) fn grow(&self, x: &Spread) -> Spread {
        match self {
            Self::Tokens { from, .. } => {
                let of = |t: &Option<usize>| t.map_or(Upper::ZERO, |t| x.each[t]);
                Spread::new(from.iter().map(of).collect(), x.total)
            }
            Self::Flat { .. } => Spread::new(vec![x.total], x.total),
            Self::Squares { tokens, .. } => Spread::new(vec![x.total; *tokens], x.total),
        }
    }

    pub(super) fn back(&self, lambda: &Functionals) -> Functionals {
        match self {
            Self::Tokens { from, inputs } => {
                let mut to = Functionals::zeros(lambda.count, (0..*inputs).collect(), lambda.width);
                for (k, t, row) in lambda.rows() {
                    if let Some(from) = from[t] {
                        to.row_mut(k, from).copy_from_slice(row);
                    }
                }
                to.trimmed()
            }
            Self::Flat { width, .. } if lambda.tokens.is_empty() => {
                Functionals::zeros(lambda.count, Vec::new(), *width)
            }
            Self::Flat { tokens, width } => {
                let data = lambda.data.clone();
                let tokens = (0..*tokens).collect();
                Functionals { count: lambda.count, tokens, width: *width, data }
            }
            Self::Squares { from, width, .. } => {
                let mut to = Functionals::zeros(lambda.count, vec![0], from.len());
                for (k, t, row) in lambda.rows() {
                    let places = &from[t * width..(t + 1) * width];
                    let to = to.row_mut(k, 0);
                    places.iter().zip(row).for_each(|(place, l)| to[*place] = *l);
                }
                to
            }
        }
    }
}
