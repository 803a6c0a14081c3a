//! Values as linear images of one unit ball of unknowns.
//!
//! A [`Span`] says of several vectors at once, its registers, that they are `F_r ζ` for one common
//! ζ with `‖ζ‖ ≤ 1`. The last register is the value that the next node reads; those below are what
//! the residual nodes around it still need. So a skip connection and its branch are added before
//! anything is bounded: `a F_x + b F_y`. A register is a list of blocks of columns, one for each
//! group of unknowns.

use std::rc::Rc;

use super::approx::Approx;
use super::block::{Block, height};
use super::tape::{Scalar, Tape, Var};
use crate::upper::{Upper, abs};

pub(super) type Register = Vec<Block>;

#[derive(Clone)]
pub(super) struct Span {
    /// What is saved, and last the current value.
    pub(super) registers: Vec<Register>,
    /// The row that gives 1 for every ζ that there is: what a bias multiplies.
    pub(super) one: Option<Register>,
    /// The number of unknowns of each block.
    pub(super) sizes: Vec<usize>,
}

impl Span {
    /// All vectors of norm at most `radius`.
    pub(super) fn ball(tape: &Tape, width: usize, radius: Upper) -> Self {
        let block = Block::Diagonal(constant_row(tape, width, radius));
        Self { registers: vec![vec![block]], one: None, sizes: vec![width] }
    }

    pub(super) fn current(&self) -> &Register {
        &self.registers[self.registers.len() - 1]
    }

    pub(super) fn set(&mut self, register: Register) {
        let last = self.registers.len() - 1;
        self.registers[last] = register;
    }

    pub(super) fn pop(&mut self) -> Option<Register> {
        self.registers.pop()
    }

    /// Whether nothing but the current value is needed later.
    pub(super) fn alone(&self) -> bool {
        self.registers.len() == 1
    }

    /// All matrices that it is made of.
    pub(super) fn vars(&self) -> Vec<Var> {
        let blocks = self.registers.iter().chain(&self.one).flatten();
        blocks.filter_map(Block::var).cloned().collect()
    }

    /// The same made of other matrices, each in the place of one of [`Span::vars`].
    pub(super) fn made_of(mut self, vars: &mut dyn Iterator<Item = Var>) -> Self {
        let blocks = self.registers.iter_mut().chain(&mut self.one).flatten();
        for (place, var) in blocks.filter_map(Block::var_mut).zip(vars) {
            *place = var;
        }
        self
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Register> {
        self.registers.iter_mut().chain(&mut self.one)
    }

    /// Replaces many unknowns by as few as there are rows, where there are more of them than `slack`
    /// times the rows.
    pub(super) fn tidy(&mut self, tape: &Tape, slack: usize) -> Option<()> {
        let rows: usize = self.registers.iter().chain(&self.one).map(|r| height(r)).sum();
        if self.sizes.iter().sum::<usize>() <= slack * rows || self.plain() {
            return Some(());
        }
        self.square(tape)
    }

    /// What contains this and another one, of the same registers.
    pub(super) fn unite(&mut self, tape: &Tape, mut other: Self) -> Option<()> {
        self.square(tape)?;
        other.square(tape)?;
        let vars = |span: &Self| -> Vec<Var> {
            let of = |register: &Register| match &register[..] {
                [Block::Dense(x)] => Some(x.clone()),
                _ => None,
            };
            span.registers.iter().chain(&span.one).filter_map(of).collect()
        };
        let mut out = tape.dominate(&vars(self), &vars(&other))?.into_iter();
        self.all().filter(|register| height(register) > 0).for_each(|register| {
            register.clear();
            register.extend(out.next().map(Block::Dense));
        });
        Some(())
    }

    /// As many unknowns as there are rows, in one block.
    fn square(&mut self, tape: &Tape) -> Option<()> {
        let registers: Vec<&[Block]> =
            self.registers.iter().chain(&self.one).map(|r| r.as_slice()).collect();
        let rows = registers.iter().map(|r| height(r)).sum();
        let mut out = tape.enclose(&registers)?.into_iter();
        self.all().for_each(|register| {
            let (zero, x) = (height(register) == 0, out.next());
            *register = vec![x.filter(|_| !zero).map_or(Block::Zero, Block::Dense)];
        });
        self.sizes = vec![rows];
        Some(())
    }

    /// Whether the current value is all there is, and a ball.
    fn plain(&self) -> bool {
        self.alone() && self.one.is_none() && matches!(self.current()[..], [Block::Diagonal(_)])
    }

    /// One dense block of unknowns.
    pub(super) fn flatten(&mut self, tape: &Tape) {
        let sizes = self.sizes.clone();
        self.all().for_each(|register| *register = vec![flat(tape, register, &sizes)]);
        self.sizes = vec![sizes.iter().sum()];
    }

    /// The current value as one matrix.
    pub(super) fn matrix(&self, tape: &Tape) -> Option<Var> {
        dense(tape, self.current(), &self.sizes)
    }

    /// Makes room for other unknowns beside: everything there is by `s`.
    pub(super) fn scale(&mut self, tape: &Tape, s: Scalar) {
        self.all().for_each(|register| *register = scaled(tape, register, s));
    }

    /// New unknowns, on which nothing depends yet.
    pub(super) fn add(&mut self, size: usize) {
        self.sizes.push(size);
        self.all().for_each(|register| register.push(Block::Zero));
    }

    /// Applies a linear map to the current value.
    pub(super) fn map(&mut self, tape: &Tape, w: &Rc<Approx>) {
        let y = times(tape, w, self.current());
        self.set(y);
    }

    /// Makes sure of a row that gives 1, for constants of about this size (its logarithm to base 2).
    pub(super) fn need_one(&mut self, tape: &Tape, what: &str, size: f64) -> Option<()> {
        if self.one.is_some() {
            return Some(());
        }
        let scales = tape.shares(what, &[self.size(), size])?;
        self.scale(tape, scales[0]);
        self.add(1);
        let mut one = vec![Block::Zero; self.sizes.len() - 1];
        let unit = tape.constant(Approx::exact(1, 1, vec![1.0]));
        one.push(Block::Dense(tape.scale(&unit, scales[1])));
        self.one = Some(one);
        Some(())
    }

    /// Adds a constant vector, as a column, to the current value.
    pub(super) fn shift(&mut self, tape: &Tape, what: &str, b: &Approx) -> Option<()> {
        if b.is_zero() {
            return Some(());
        }
        let b = Rc::new(b.clone());
        self.need_one(tape, what, b.log_size())?;
        let added = times(tape, &b, self.one.as_ref()?);
        let y = blend(tape, 1.0, self.current(), 1.0, &added);
        self.set(y);
        Some(())
    }

    /// Adds any vector of norm at most `radius`, or makes the current value one.
    pub(super) fn ball_beside(
        &mut self,
        tape: &Tape,
        what: &str,
        radius: Scalar,
        width: usize,
        add: bool,
    ) -> Option<()> {
        let row = tape.scale(&constant_row(tape, width, Upper::ONE), radius);
        if self.alone() && !add {
            self.registers = vec![vec![Block::Diagonal(row)]];
            (self.sizes, self.one) = (vec![width], None);
            return Some(());
        }
        let scales = tape.shares(what, &[self.size(), row.value.log_size()])?;
        self.scale(tape, scales[0]);
        self.add(width);
        let mut y = if add { self.current().clone() } else { vec![Block::Zero; self.sizes.len()] };
        let last = y.len() - 1;
        y[last] = Block::Diagonal(tape.scale(&row, scales[1]));
        self.set(y);
        Some(())
    }

    /// A number near log2 of the size of the current value.
    pub(super) fn size(&self) -> f64 {
        size(self.current())
    }
}

/// A number near log2 of the Frobenius norm.
pub(super) fn size(register: &[Block]) -> f64 {
    let all: Vec<f64> = register.iter().filter_map(Block::value).map(Approx::log_size).collect();
    let top = all.iter().fold(-1e9, |m: f64, x| m.max(*x));
    top + 0.5 * all.iter().map(|x| (2.0 * (x - top)).exp2()).sum::<f64>().max(1.0).log2()
}

pub(super) fn constant_row(tape: &Tape, width: usize, value: Upper) -> Var {
    tape.constant(Approx::exact(1, width, vec![1.0; width]).scale(value))
}

/// `w` times each block.
pub(super) fn times(tape: &Tape, w: &Rc<Approx>, register: &[Block]) -> Register {
    let of = |b: &Block| match b {
        Block::Zero => Block::Zero,
        Block::Diagonal(d) => Block::Dense(tape.times_diagonal(w, d)),
        Block::Dense(x) => Block::Dense(tape.times(w, x)),
    };
    register.iter().map(of).collect()
}

pub(super) fn scaled(tape: &Tape, register: &[Block], s: Scalar) -> Register {
    let of = |b: &Block| match b {
        Block::Zero => Block::Zero,
        Block::Diagonal(d) => Block::Diagonal(tape.scale(d, s)),
        Block::Dense(x) => Block::Dense(tape.scale(x, s)),
    };
    register.iter().map(of).collect()
}

/// `a x + b y`
pub(super) fn blend(tape: &Tape, a: f64, x: &[Block], b: f64, y: &[Block]) -> Register {
    let one = |factor: f64, of: &Block| match of {
        Block::Zero => Block::Zero,
        Block::Diagonal(d) => Block::Diagonal(tape.blend(factor, d, None)),
        Block::Dense(x) => Block::Dense(tape.blend(factor, x, None)),
    };
    let of = |(x, y): (&Block, &Block)| match (x, y) {
        (Block::Zero, y) => one(b, y),
        (x, Block::Zero) => one(a, x),
        (Block::Diagonal(x), Block::Diagonal(y)) => Block::Diagonal(tape.blend(a, x, Some((b, y)))),
        (Block::Dense(x), Block::Dense(y)) => Block::Dense(tape.blend(a, x, Some((b, y)))),
        (Block::Diagonal(x), Block::Dense(y)) => {
            Block::Dense(tape.blend(a, &tape.spread(x), Some((b, y))))
        }
        (Block::Dense(x), Block::Diagonal(y)) => {
            Block::Dense(tape.blend(a, x, Some((b, &tape.spread(y)))))
        }
    };
    x.iter().zip(y).map(of).collect()
}

/// `factor x`
pub(super) fn by(tape: &Tape, factor: f64, x: &[Block]) -> Register {
    if abs(factor) == Upper::ONE && factor > 0.0 {
        return x.to_vec();
    }
    blend(tape, factor, x, 0.0, &vec![Block::Zero; x.len()])
}

/// All blocks as one matrix; none if there is nothing.
pub(super) fn dense(tape: &Tape, register: &[Block], sizes: &[usize]) -> Option<Var> {
    let rows = height(register);
    if rows == 0 {
        return None;
    }
    let of = |(b, n): (&Block, &usize)| match b {
        Block::Zero => tape.constant(Approx::exact(rows, *n, vec![0.0; rows * n])),
        Block::Diagonal(d) => tape.spread(d),
        Block::Dense(x) => x.clone(),
    };
    let parts: Vec<Var> = register.iter().zip(sizes).map(of).collect();
    Some(tape.beside(&parts))
}

fn flat(tape: &Tape, register: &[Block], sizes: &[usize]) -> Block {
    dense(tape, register, sizes).map_or(Block::Zero, Block::Dense)
}
