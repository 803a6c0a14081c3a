//! Work on the numbers of CPU tensors without a gradient: matrix by matrix, in place, sums.

use candle_core::{CpuStorage, DType, InplaceOp2, InplaceOp3, Layout, Result, Tensor, bail};
use rayon::prelude::*;

use super::kernel::{slice, with_slices};
use super::real::{Real, simd, sum};
use super::{CHUNK, fused};

/// Something done to a matrix.
pub trait MatrixMap: Sync {
    /// `out` from `x`, both row-major `[rows, columns]`; products on all cores if `parallel`.
    fn run<T: Real>(&self, x: &[T], out: &mut [T], rows: usize, columns: usize, parallel: bool);
}

/// Each map of each matrix of its `[…, rows, columns]`, all at once; none where the fused kernels
/// do not run: other devices and float types.
///
/// # Errors
/// Candle's own.
pub fn each_matrix<M: MatrixMap>(jobs: &[(M, Tensor)]) -> Result<Option<Vec<Tensor>>> {
    fn run<T: Real, M: MatrixMap>(jobs: &[(M, Tensor)]) -> Result<Vec<Tensor>> {
        let inputs =
            jobs.iter().map(|(_, x)| x.detach().contiguous()).collect::<Result<Vec<_>>>()?;
        let mut outputs: Vec<Vec<T>> =
            inputs.iter().map(|x| vec![T::of(0.0); x.elem_count()]).collect();
        with_slices::<T, _>(&inputs.iter().collect::<Vec<_>>(), |slices| {
            let mut tasks = Vec::new();
            for (((map, x), input), out) in jobs.iter().zip(slices).zip(&mut outputs) {
                let &[.., rows, columns] = x.dims() else {
                    bail!("{:?} are no matrices", x.dims())
                };
                let size = (rows * columns).max(1);
                tasks.extend(
                    out.chunks_mut(size)
                        .zip(input.chunks(size))
                        .map(|(out, x)| (map, x, out, rows, columns)),
                );
            }
            // A product of a few matrices is worth splitting, of many is not; either way the bits
            // are the same.
            let few = tasks.len() < 2 * rayon::current_num_threads();
            let one = |(map, x, out, rows, columns): (&M, _, _, _, _)| {
                map.run::<T>(x, out, rows, columns, few)
            };
            if few {
                tasks.into_iter().for_each(one);
            } else {
                tasks.into_par_iter().with_max_len(1).for_each(one);
            }
            Ok(())
        })??;
        outputs
            .into_iter()
            .zip(&inputs)
            .map(|(out, x)| Tensor::from_vec(out, x.shape(), x.device()))
            .collect()
    }
    let inputs: Vec<&Tensor> = jobs.iter().map(|(_, x)| x).collect();
    Ok(match inputs.first() {
        Some(first) if fused(&inputs) => Some(if first.dtype() == DType::F32 {
            run::<f32, M>(jobs)?
        } else {
            run::<f64, M>(jobs)?
        }),
        _ => None,
    })
}

/// Σ x², added in f64 and in the same order on any number of threads.
pub fn sum_of_squares<T: Real>(x: &[T]) -> f64 {
    let of_chunk = |x: &[T]| {
        simd(
            #[inline(always)]
            || sum(x.len(), |i| x[i].to_f64() * x[i].to_f64()),
        )
    };
    x.par_chunks(CHUNK).map(of_chunk).collect::<Vec<f64>>().into_iter().sum()
}

/// The ℓ2 norm of a tensor of any shape; in f64 on the CPU.
///
/// # Errors
/// Candle's own.
pub fn norm(x: &Tensor) -> Result<f64> {
    let x = x.detach().contiguous()?;
    let squares = match x.dtype() {
        DType::F32 if fused(&[&x]) => with_slices::<f32, _>(&[&x], |s| sum_of_squares(s[0]))?,
        DType::F64 if fused(&[&x]) => with_slices::<f64, _>(&[&x], |s| sum_of_squares(s[0]))?,
        _ => x.to_dtype(DType::F32)?.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?,
    };
    Ok(squares.sqrt())
}

/// `x ← a·x + b·y`, in place where the fused kernels run.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn mix(x: &mut Tensor, a: f64, y: &Tensor, b: f64) -> Result<()> {
    if fused(&[x, y]) {
        return x.inplace_op2(&y.detach().contiguous()?, &Mix { a, b, squares: false });
    }
    *x = ((x.detach() * a)? + (y.detach() * b)?)?;
    Ok(())
}

/// A step of Adam: `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, and the direction `(m/c₁) / (√(v/c₂)
/// + ε)` scaled and added: `w ← keep·w − rate·direction`.
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// c₁ and c₂, what the means fall short of by their start at zero.
    pub corrections: (f64, f64),
    /// ε
    pub eps: f64,
    /// Factor on the weight.
    pub keep: f64,
    /// Factor on the direction.
    pub rate: f64,
}

impl Adam {
    /// One step, in place where the fused kernels run.
    ///
    /// # Errors
    /// Shapes that differ, and candle's own.
    pub fn step(
        &self,
        w: &candle_core::Var,
        m: &mut Tensor,
        v: &mut Tensor,
        g: &Tensor,
    ) -> Result<()> {
        let g = g.detach().contiguous()?;
        mix(m, self.betas.0, &g, 1.0 - self.betas.0)?;
        if fused(&[w, m, v, &g]) {
            v.inplace_op2(&g, &Mix { a: self.betas.1, b: 1.0 - self.betas.1, squares: true })?;
            return w.as_tensor().inplace_op3(m, v, self);
        }
        *v = ((v.detach() * self.betas.1)? + (g.sqr()? * (1.0 - self.betas.1))?)?;
        let direction =
            ((&*m / self.corrections.0)? / ((&*v / self.corrections.1)?.sqrt()? + self.eps)?)?;
        w.set(&((w.as_tensor().detach() * self.keep)? - (direction * self.rate)?)?)
    }
}

/// A variable's `w ← a·w + b·y`, in place where the fused kernels run.
///
/// # Errors
/// Shapes that differ, and candle's own.
pub fn advance(w: &candle_core::Var, a: f64, y: &Tensor, b: f64) -> Result<()> {
    if fused(&[w, y]) {
        return w.as_tensor().inplace_op2(&y.detach().contiguous()?, &Mix { a, b, squares: false });
    }
    w.set(&((w.as_tensor().detach() * a)? + (y.detach() * b)?)?)
}

/// `x ← a·x + b·y`, or `b·y²` in place of `b·y`.
struct Mix {
    a: f64,
    b: f64,
    squares: bool,
}

/// The elements of a contiguous CPU storage, to be written.
fn slice_mut<'a, T: Real>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [T]> {
    match (layout.contiguous_offsets(), T::of_storage(storage)) {
        (Some((from, to)), Some(data)) => Ok(&mut data[from..to]),
        _ => bail!("a tensor is not contiguous, or of another type"),
    }
}

impl InplaceOp2 for Mix {
    fn name(&self) -> &'static str {
        "mix"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<()> {
        match s2 {
            CpuStorage::F32(_) => self.run::<f32>(slice_mut(s1, l1)?, slice(s2, l2)?),
            _ => self.run::<f64>(slice_mut(s1, l1)?, slice(s2, l2)?),
        }
    }
}

impl Mix {
    fn run<T: Real>(&self, x: &mut [T], y: &[T]) -> Result<()> {
        if x.len() != y.len() {
            bail!("{} elements cannot be mixed with {}", x.len(), y.len())
        }
        let (a, b, squares) = (T::of(self.a), T::of(self.b), self.squares);
        x.par_chunks_mut(CHUNK).zip(y.par_chunks(CHUNK)).for_each(|(x, y)| {
            simd(
                #[inline(always)]
                || {
                    for (x, y) in x.iter_mut().zip(y) {
                        let y = if squares { *y * *y } else { *y };
                        *x = a * *x + b * y;
                    }
                },
            );
        });
        Ok(())
    }
}

impl InplaceOp3 for Adam {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(
        &self,
        s1: &mut CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<()> {
        match s2 {
            CpuStorage::F32(_) => {
                self.run::<f32>(slice_mut(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?)
            }
            _ => self.run::<f64>(slice_mut(s1, l1)?, slice(s2, l2)?, slice(s3, l3)?),
        }
    }
}

impl Adam {
    fn run<T: Real>(&self, w: &mut [T], m: &[T], v: &[T]) -> Result<()> {
        if w.len() != m.len() || w.len() != v.len() {
            bail!("{} weights have {} and {} means", w.len(), m.len(), v.len())
        }
        let [keep, rate, eps] = [self.keep, self.rate, self.eps].map(T::of);
        let [first, second] = [self.corrections.0, self.corrections.1].map(|c| T::of(1.0 / c));
        w.par_chunks_mut(CHUNK).zip(m.par_chunks(CHUNK)).zip(v.par_chunks(CHUNK)).for_each(
            |((w, m), v)| {
                simd(
                    #[inline(always)]
                    || {
                        for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
                            *w = keep * *w - rate * (*m * first) / (Real::sqrt(*v * second) + eps);
                        }
                    },
                );
            },
        );
        Ok(())
    }
}
