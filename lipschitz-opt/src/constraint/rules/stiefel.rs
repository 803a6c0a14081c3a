//! Projection onto the scaled Stiefel manifold: `W ← σ_max UVᵀ`.
//!
//! `σ ≤ σ_max` under any optimizer. All singular values equal the cap, except those that are tiny.
//! Matrices that may lose rank, such as a head that starts at zero, are clipped instead where a config
//! names them.

use candle_core::{D, DType, Tensor};

use super::super::config::{Constant, ConstraintConfig};
use super::super::norms::{MARGIN, TopVectors};
use super::super::rule::{Apply, Blocks, Rule, aim_at_cap, each, promise_cap};
use super::svd_clip::clip;
use crate::Error;
use crate::blocks::matrix_name;
use crate::polynomial::{apply_steps, polar, polar_work};

pub(super) static RULE: Rule = Rule {
    key: "stiefel",
    name: "Stiefel",
    capped: true,
    constants: &[Constant::Clip],
    check: |_| Ok(()),
    aim: aim_at_cap,
    promise: promise_cap,
    apply: Apply::Matrices(apply),
    work: |_, sides, bounded| {
        Some(if bounded { sides.cubics(CUBICS) + sides.long_product() } else { polar_work(sides) })
    },
};

/// Relative distance at which the cap is met from below. Nothing moves away from 1 in the last
/// cubic but by rounding, which is far below this: an orthogonal matrix of 1024 rows in f32 has a
/// norm within 4·10⁻⁷ of 1.
const ROUNDING: f64 = 1e-6;

/// Cubics that bring back what a step of a tenth of the cap has moved.
const CUBICS: usize = 4;

/// The largest step, as a share of the cap, from which cubics alone come back.
const NEAR: f64 = 0.5;

/// How far from orthogonal, in the Frobenius norm of `YYᵀ − I`, a matrix may be left.
const ORTHOGONAL: f64 = 1e-4;

/// What is done to a block.
#[derive(Clone, Copy, PartialEq)]
enum To {
    /// Singular values are clipped at the cap.
    Clip(f64),
    /// They are set to it; by this many cubics, where that may be enough.
    Cap(f64, Option<usize>),
}

fn apply(
    config: &ConstraintConfig,
    matrices: &[Blocks<'_>],
    _: &mut TopVectors,
) -> Result<Vec<Tensor>, Error> {
    let to = |m: &Blocks<'_>| match config.clip.contains(matrix_name(m.name())) {
        true => To::Clip(m.cap * (1.0 - MARGIN)),
        false => {
            let moved = m.grown().map(|grown| grown / m.cap - 1.0);
            To::Cap(m.cap * (1.0 - ROUNDING), moved.and_then(cubics))
        }
    };
    each(matrices, to, |to, x| match to {
        To::Clip(cap) => clip(&x, cap),
        To::Cap(cap, cubics) => match cubics.map(|n| near(&(&x / cap)?, n)).transpose()? {
            Some(Some(y)) => Ok((y * cap)?),
            _ => Ok((polar(&x)? * cap)?),
        },
    })
}

/// Steps `x ← 1.5 x − 0.5 x³` that take singular values within `off` of 1 to 1: they square the
/// distance, `1 − (1−x)²(1+x/2)`. None if it is far.
fn cubics(off: f64) -> Option<usize> {
    let mut off = off;
    if off.is_nan() || off > NEAR {
        return None;
    }
    let mut steps = 0;
    while off > 5e-8 {
        off = off * off * (1.5 + 0.5 * off);
        steps += 1;
    }
    Some(steps.max(1))
}

/// The polar factors of `[count, rows, columns]` whose singular values are near 1, by so many
/// cubics; none if they were not.
fn near(x: &Tensor, cubics: usize) -> Result<Option<Tensor>, Error> {
    let y = apply_steps(x, &vec![[1.5, -0.5, 0.0]; cubics])?;
    let t = y.transpose(D::Minus2, D::Minus1)?.contiguous()?;
    let (rows, columns) = (y.dim(D::Minus2)?, y.dim(D::Minus1)?);
    let gram = if rows <= columns { y.matmul(&t)? } else { t.matmul(&y)? };
    let one = Tensor::eye(rows.min(columns), y.dtype(), y.device())?;
    let off = gram.broadcast_sub(&one)?.sqr()?.sum((1, 2))?.max(0)?;
    let off = off.to_dtype(DType::F64)?.to_scalar::<f64>()?.sqrt();
    Ok((off <= ORTHOGONAL).then_some(y))
}
