//! Blocks of registers.

use super::approx::Approx;
use super::tape::Var;

/// What a register holds of one block of unknowns.
#[derive(Clone)]
pub(super) enum Block {
    /// Nothing.
    Zero,
    /// A diagonal matrix, as a row.
    Diagonal(Var),
    /// A matrix.
    Dense(Var),
}

impl Block {
    pub(super) fn var(&self) -> Option<&Var> {
        match self {
            Self::Zero => None,
            Self::Diagonal(x) | Self::Dense(x) => Some(x),
        }
    }

    pub(super) fn var_mut(&mut self) -> Option<&mut Var> {
        match self {
            Self::Zero => None,
            Self::Diagonal(x) | Self::Dense(x) => Some(x),
        }
    }

    pub(super) fn value(&self) -> Option<&Approx> {
        self.var().map(|x| &*x.value)
    }

    /// The number of unknowns, where it is known.
    pub(super) fn width(&self) -> Option<usize> {
        self.value().map(|x| x.columns)
    }
}

/// Rows of a register; 0 if it holds nothing.
pub(super) fn height(register: &[Block]) -> usize {
    let of = |b: &Block| match b {
        Block::Zero => None,
        Block::Diagonal(d) => Some(d.value.columns),
        Block::Dense(x) => Some(x.value.rows),
    };
    register.iter().find_map(of).unwrap_or(0)
}
