//! Slopes that are known to lie around a centre: what becomes of a value that is multiplied by them.

use std::rc::Rc;

use lipschitz_nn::graph::Function;

use super::approx::Approx;
use super::block::Block;
use super::span::{Register, Span, blend, by};
use super::tape::{Tape, Var};
use crate::bound::pointwise;
use crate::upper::Upper;

/// `Σ (centre + spread S_i) y_i` for the current value, each S_i diagonal of elements at most 1; or,
/// if `whole`, symmetric of norm at most 1.
pub(super) fn slopes(
    tape: &Tape,
    span: &mut Span,
    what: &str,
    centre: f64,
    spread: Upper,
    whole: bool,
) -> Option<()> {
    let y = span.pop()?;
    if spread == Upper::ZERO {
        span.registers.push(by(tape, centre, &y));
        return Some(());
    }
    uncertain(tape, span, what, [y], centre, spread, whole)
}

/// As [`slopes`] for several values, whose sum becomes the current one.
pub(super) fn uncertain<const N: usize>(
    tape: &Tape,
    span: &mut Span,
    what: &str,
    parts: [Register; N],
    centre: f64,
    spread: Upper,
    whole: bool,
) -> Option<()> {
    // No more unknowns than rows, in one block.
    span.registers.extend(parts);
    span.tidy(tape, 1)?;
    span.flatten(tape);
    let first = span.registers.len() - N;
    let dense = |register: &Register| match &register[..] {
        [Block::Dense(x)] => Some(x.clone()),
        _ => None,
    };
    let mut all: Vec<Var> = Vec::new();
    let mut place: Vec<Option<usize>> = Vec::new();
    for register in span.registers.iter().chain(&span.one) {
        let found = dense(register);
        place.push(found.is_some().then_some(all.len()));
        all.extend(found);
    }
    let rows: Option<Vec<(usize, bool)>> =
        (first..first + N).map(|i| place[i].map(|i| (i, whole))).collect();
    // Where there is nothing, nothing becomes of it.
    let Some(rows) = rows else {
        span.registers.truncate(first);
        span.registers.push(vec![Block::Zero]);
        return Some(());
    };
    let (out, noise) = tape.rebase(what, &all, &rows)?;
    let back = |i: usize| place[i].map_or(Block::Zero, |i| Block::Dense(out[i].clone()));
    let registers = span.registers.len();
    span.registers = (0..first).map(|i| vec![back(i)]).collect();
    if span.one.is_some() {
        span.one = Some(vec![back(registers)]);
    }
    let mut y = vec![Block::Zero];
    if centre != 0.0 {
        let all: Vec<Register> = (first..first + N).map(|i| vec![back(i)]).collect();
        let sum = all[1..]
            .iter()
            .fold(by(tape, centre, &all[0]), |sum, x| blend(tape, 1.0, &sum, centre, x));
        y = sum;
    }
    for noise in &noise {
        span.add(noise.value.columns);
    }
    let spread = tape.constant_scalar(spread);
    y.extend(noise.iter().map(|noise| Block::Diagonal(tape.scale(noise, spread))));
    span.registers.push(y);
    // Unknowns that nothing depends on any more.
    if span.alone() && span.one.is_none() && centre == 0.0 {
        span.sizes.remove(0);
        span.registers[0].remove(0);
    }
    Some(())
}

/// `[f I, ±f I]`, of `half` rows.
pub(super) fn pairs(half: usize, f: f64, sign: f64) -> Rc<Approx> {
    let mut data = vec![0.0; 2 * half * half];
    for (i, row) in data.chunks_mut(2 * half).enumerate() {
        (row[i], row[half + i]) = (f, sign * f);
    }
    Rc::new(Approx::exact(half, 2 * half, data))
}

/// `diag(d)` times each block.
pub(super) fn rows_by(tape: &Tape, d: &Var, register: &[Block]) -> Register {
    let of = |b: &Block| match b {
        Block::Zero => Block::Zero,
        Block::Diagonal(x) => Block::Dense(tape.rows_by(d, &tape.spread(x))),
        Block::Dense(x) => Block::Dense(tape.rows_by(d, x)),
    };
    register.iter().map(of).collect()
}

/// A row of bounds.
pub(super) fn row(of: &Var) -> Vec<Upper> {
    let scaled = |x: &f64| Upper::from_f64(*x).times_power(of.value.exponent);
    of.value.data.iter().map(scaled).collect()
}

/// The largest of a row of bounds.
pub(super) fn worst(row: &Var) -> Upper {
    let largest = row.value.data.iter().fold(0.0, |m: f64, x| m.max(*x));
    Upper::from_f64(largest).times_power(row.value.exponent)
}

/// Bounds on |φ| for arguments within a row of bounds.
pub(super) fn values(tape: &Tape, function: Function, row: &Var) -> Var {
    let e = row.value.exponent;
    let of = |x: &f64| {
        pointwise::value(function, Upper::from_f64(*x).times_power(e)).times_power(-e).to_f64()
    };
    let data: Vec<f64> = row.value.data.iter().map(of).collect();
    // Most are at most their argument.
    if data == row.value.data {
        return row.clone();
    }
    tape.constant(Approx::new(1, row.value.columns, data, e, Upper::ZERO))
}
