//! One step of Adam on one weight.

use candle_core::{Result, Tensor, Var};
use lipschitz_nn::linalg::{AdamStep, MeanSquare, axpby, update};

/// A step of Adam: `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, and `w ← keep·w − rate·d` along the
/// direction `d = (m/c₁) / (√(v/c₂) + ε)`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adam {
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
    pub(crate) fn step(&self, w: &Var, m: &mut Tensor, v: &mut Tensor, g: &Tensor) -> Result<()> {
        let g = g.detach().contiguous()?;
        axpby(m, self.betas.0, &g, 1.0 - self.betas.0)?;
        if !update(v, [&g], &MeanSquare { beta: self.betas.1 })? {
            *v = ((v.detach() * self.betas.1)? + (g.sqr()? * (1.0 - self.betas.1))?)?;
        }
        let Self { keep, rate, eps, corrections, .. } = *self;
        if !update(w, [m, v], &AdamStep { keep, rate, eps, corrections })? {
            let direction =
                ((&*m / self.corrections.0)? / ((&*v / self.corrections.1)?.sqrt()? + self.eps)?)?;
            w.set(&((w.as_tensor().detach() * self.keep)? - (direction * self.rate)?)?)?;
        }
        Ok(())
    }
}
