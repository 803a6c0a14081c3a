//! Odd polynomials of matrices: `UΣVᵀ ↦ U p(Σ) Vᵀ` by matrix products alone.

use candle_core::{D, DType, Device, Result, Tensor};

use lipschitz_nn::linalg::{Precision, each_matrix};

use super::kernel::Quintics;
use super::newton_schulz::NewtonSchulz;
use super::steps::Steps;
use crate::work::Sides;

/// Long side over short side from which the Gram form needs fewer products.
const GRAM: usize = 2;

/// The relative amount by which rounding can take [`orthogonalise`] in f32 above the polynomials'
/// maximum, with room to spare. A Gram matrix rounds the squares of singular values near 10⁻³ of
/// the norm by up to two hundredths, the worst that a search found.
#[must_use]
pub fn rounding(rows: usize, columns: usize) -> f64 {
    if by_gram(rows, columns) { 0.04 } else { 5e-4 }
}

/// Whether the Gram form needs fewer products.
fn by_gram(rows: usize, columns: usize) -> bool {
    rows.max(columns) >= GRAM * rows.min(columns)
}

/// `UVᵀ` of `m = UΣVᵀ`, nearly: singular values over the Frobenius norm go through
/// [`NewtonSchulz::at`]. `m` is `[…, rows, columns]` in f32, f64 or bf16, each matrix by itself;
/// zero stays zero.
///
/// In f32 every element is within 3·10⁻³ of the polynomial's exact value, and within 10⁻⁴ except
/// for rectangular matrices with singular values near 10⁻³ of the norm, whose squares a Gram matrix
/// rounds. In bf16 it is within 0.2.
///
/// # Errors
/// Candle's own.
pub fn orthogonalise(m: &Tensor, set: NewtonSchulz) -> Result<Tensor> {
    match orthogonalise_each(std::slice::from_ref(m), set)? {
        Some(mut all) => Ok(all.remove(0)),
        None => orthogonalise_composed(m, set),
    }
}

/// [`orthogonalise`] of all stacks at once; none where its kernel does not run.
pub(crate) fn orthogonalise_each(
    stacks: &[Tensor],
    set: NewtonSchulz,
) -> Result<Option<Vec<Tensor>>> {
    let steps = set.steps();
    let job = |m: &Tensor| {
        let (rows, columns) = (m.dim(D::Minus2)?, m.dim(D::Minus1)?);
        Ok((Quintics { steps: &steps, unit: true, gram: by_gram(rows, columns) }, m.clone()))
    };
    each_matrix(&stacks.iter().map(job).collect::<Result<Vec<_>>>()?)
}

/// [`orthogonalise`] composed of tensor operations, for other devices and bf16.
///
/// # Errors
/// Candle's own.
pub fn orthogonalise_composed(m: &Tensor, set: NewtonSchulz) -> Result<Tensor> {
    wide(m, |x| {
        let x = unit(&x)?;
        let (rows, columns) = (x.dim(D::Minus2)?, x.dim(D::Minus1)?);
        // In bf16 the eigenvalues of a Gram matrix would lose all digits.
        if by_gram(rows, columns) && x.dtype() != DType::BF16 {
            gram_form(&x, &set.steps())
        } else {
            plain(x, &set.steps())
        }
    })
}

/// Floating-point operations of [`orthogonalise`] in f32, or in bf16.
pub(crate) fn orthogonalise_work(sides: Sides, set: NewtonSchulz, precision: Precision) -> f64 {
    let steps = set.steps().len();
    // A step is the square of the Gram matrix G and the product of the factors, and except in the
    // last step two products for the next G.
    if by_gram(sides.short, sides.long) && precision == Precision::F32 {
        2.0 * sides.long_product() + (4 * steps - 3) as f64 * sides.short_product()
    } else {
        sides.quintics(steps)
    }
}

/// `UVᵀ` up to rounding, for singular values of at least 10⁻³ of the Frobenius norm; smaller ones
/// end between 0 and 1. The six-step set comes first, then steps that square the distance from 1,
/// `1 − (1−x)²(1+x/2)`, and never exceed 1.
///
/// # Errors
/// Candle's own.
pub fn polar(m: &Tensor) -> Result<Tensor> {
    wide(&orthogonalise(m, NewtonSchulz::SixStep)?, |x| plain(x, &vec![[1.5, -0.5, 0.0]; 3]))
}

/// Floating-point operations of [`polar`].
pub(crate) fn polar_work(sides: Sides) -> f64 {
    orthogonalise_work(sides, NewtonSchulz::SixStep, Precision::F32) + sides.cubics(3)
}

/// The sign of symmetric matrices `[…, n, n]` with eigenvalues in [-1, 1]: `sign(λ)` up to rounding
/// for |λ| above 10⁻³, between 0 and `sign(λ)` below.
///
/// # Errors
/// Candle's own.
pub(crate) fn sign(s: &Tensor) -> Result<Tensor> {
    let mut steps = NewtonSchulz::SixStep.steps();
    steps.extend([[1.5, -0.5, 0.0]; 3]);
    plain(s.clone(), &steps)
}

/// Floating-point operations of [`sign`] of `[s, s]`.
pub(crate) fn sign_work(sides: Sides) -> f64 {
    sides.quintics(NewtonSchulz::SixStep.steps().len()) + sides.cubics(3)
}

/// Odd quintics in turn on the singular values of `[…, rows, columns]`, without a scale.
///
/// # Errors
/// Candle's own.
pub(crate) fn apply_steps(x: &Tensor, steps: &Steps) -> Result<Tensor> {
    match each_matrix(&[(Quintics { steps, unit: false, gram: false }, x.clone())])? {
        Some(mut all) => Ok(all.remove(0)),
        None => wide(x, |x| plain(x, steps)),
    }
}

/// Runs `f` on matrices with no more rows than columns.
pub(crate) fn wide(x: &Tensor, f: impl FnOnce(Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let flip = |x: &Tensor| x.transpose(D::Minus2, D::Minus1)?.contiguous();
    if x.dim(D::Minus2)? > x.dim(D::Minus1)? { flip(&f(flip(x)?)?) } else { f(x.contiguous()?) }
}

/// Each matrix over its Frobenius norm, in `f32` at least.
fn unit(x: &Tensor) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = if dtype == DType::BF16 { x.to_dtype(DType::F32)? } else { x.clone() };
    let tiny = f64::from(f32::MIN_POSITIVE);
    // By the largest element first: squares of tiny gradients would underflow.
    let largest = x.abs()?.max_keepdim(D::Minus1)?.max_keepdim(D::Minus2)?;
    let x = x.broadcast_div(&(largest + tiny)?)?;
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sum_keepdim(D::Minus2)?.sqrt()?;
    x.broadcast_div(&(norm + tiny)?)?.to_dtype(dtype)
}

/// `x ← (a + b G + c G²) x` with `G = x xᵀ`.
fn plain(mut x: Tensor, steps: &Steps) -> Result<Tensor> {
    if let Some(mut all) =
        each_matrix(&[(Quintics { steps, unit: false, gram: false }, x.clone())])?
    {
        return Ok(all.remove(0));
    }
    for &[a, b, c] in steps {
        let gram = product(&x, &x.transpose(D::Minus2, D::Minus1)?)?;
        let mix = match c {
            0.0 => (&gram * b)?,
            _ => ((&gram * b)? + (product(&gram, &gram)? * c)?)?,
        };
        x = ((&x * a)? + product(&mix, &x)?)?;
    }
    Ok(x)
}

/// [`plain`] with products of the short side alone: with `p = a + b G + c G²`, `G ← p G p`, and the
/// factors multiply, `q ← p q`. Products with the long side come at the start and the end.
fn gram_form(x: &Tensor, steps: &Steps) -> Result<Tensor> {
    let n = x.dim(D::Minus2)?;
    let one = Tensor::eye(n, x.dtype(), x.device())?;
    let mut gram = product(x, &x.transpose(D::Minus2, D::Minus1)?)?;
    let mut factor: Option<Tensor> = None;
    for (i, &[a, b, c]) in steps.iter().enumerate() {
        let p = ((&gram * b)? + (product(&gram, &gram)? * c)?)?.broadcast_add(&(&one * a)?)?;
        if i + 1 < steps.len() {
            gram = product(&product(&p, &gram)?, &p)?;
        }
        factor = Some(match factor {
            None => p,
            Some(q) => product(&p, &q)?,
        });
    }
    match factor {
        Some(q) => product(&q, x),
        None => Ok(x.clone()),
    }
}

/// A product of `[…, m, k]` and `[…, k, n]`. On the CPU, where candle has none in bf16, factors and
/// result are rounded to bf16 and sums kept in f32, as a tensor core does.
pub(crate) fn product(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match (a.dtype(), a.device()) {
        (DType::BF16, Device::Cpu) => {
            a.to_dtype(DType::F32)?.matmul(&b.to_dtype(DType::F32)?)?.to_dtype(DType::BF16)
        }
        _ => a.matmul(b),
    }
}
