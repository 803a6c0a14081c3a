//! Elements that training leaves out at random.

use candle_core::{DType, Device, Result, Tensor, bail};
use rand::Rng;
use rayon::prelude::*;

use super::kernel::{Array, Kernel, apply};
use crate::linalg::{Real, fused};
use crate::random::keyed;

/// Which elements a training pass leaves out: a share of those behind each activation are zero, and
/// the others are larger by as much, so that means stay what they are (Srivastava et al., *Dropout*,
/// 2014). The network itself has no such elements, and its constant is that without them.
///
/// They depend on seed, step, node and the place of an example in its batch alone: a batch in parts,
/// or shared by processes, leaves out the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// The share of elements that are zero, from 0 to below 1.
    pub rate: f64,
    /// Decides which, with the step.
    pub seed: u64,
    /// From 0.
    pub step: u64,
    /// The place in the batch of the first example of the pass.
    pub first: u64,
}

/// More than there are examples in a batch.
const PLACES: u64 = 1 << 28;

/// `x`, of `[batch, …]`, without the elements that are left out at `place`, the name of a node.
///
/// # Errors
/// A single number, which has no batch, and candle's own.
pub fn dropout(x: &Tensor, dropout: Dropout, place: &str) -> Result<Tensor> {
    if fused(&[x]) {
        apply(LeaveOut::new(dropout, place), &[x], true)
    } else {
        composed(x, dropout, place)
    }
}

/// [`dropout`] out of candle's operations.
///
/// # Errors
/// As [`dropout`].
pub fn composed(x: &Tensor, dropout: Dropout, place: &str) -> Result<Tensor> {
    let ones = Tensor::ones(x.shape(), DType::F32, &Device::Cpu)?;
    let kept = apply(LeaveOut::new(dropout, place), &[&ones], false)?;
    x * kept.to_dtype(x.dtype())?.to_device(x.device())?
}

struct LeaveOut {
    dropout: Dropout,
    label: String,
}

impl LeaveOut {
    fn new(dropout: Dropout, place: &str) -> Self {
        // Of a label, 24 bytes count.
        Self { dropout, label: format!("-{place}") }
    }

    /// The elements that stay, larger by as much as is left out.
    fn of<T: Real>(&self, x: &[T], dims: &[usize]) -> Vec<T> {
        let Dropout { rate, seed, step, first } = self.dropout;
        let mut out = vec![T::of(0.0); x.len()];
        // Of one example.
        let size = dims[1..].iter().product::<usize>().max(1);
        let (limit, factor) = ((rate * 2f64.powi(32)) as u64, T::of(1.0 / (1.0 - rate)));
        out.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(i, (out, x))| {
            let position = step.wrapping_mul(PLACES).wrapping_add(first + i as u64);
            let mut stream = keyed(seed, &self.label, position);
            for (out, x) in out.iter_mut().zip(x) {
                if u64::from(stream.next_u32()) >= limit {
                    *out = *x * factor;
                }
            }
        });
        out
    }
}

impl Kernel for LeaveOut {
    const NAME: &'static str = "dropout";
    type Saved<T: Real> = ();

    fn dims(&self, inputs: &[&[usize]]) -> Result<Vec<usize>> {
        if inputs[0].is_empty() {
            bail!("dropout of a number, which has no examples");
        }
        Ok(inputs[0].to_vec())
    }

    fn forward<T: Real>(&self, inputs: &[Array<T>]) -> (Vec<T>, ()) {
        (self.of(inputs[0].data, inputs[0].dims), ())
    }

    fn backward<T: Real>(
        &self,
        inputs: &[Array<T>],
        (): (),
        grad: &[T],
        _: &[bool],
    ) -> Vec<Vec<T>> {
        vec![self.of(grad, inputs[0].dims)]
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    const QUARTER: Dropout = Dropout { rate: 0.25, seed: 3, step: 5, first: 0 };

    fn of(shape: &[usize], which: Dropout, place: &str) -> Vec<f32> {
        let x = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        dropout(&x, which, place).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_share_is_left_out_and_the_mean_stays() {
        let y = of(&[10, 20, 50], QUARTER, "1");
        let zeros = y.iter().filter(|y| **y == 0.0).count();
        assert!((2200..2800).contains(&zeros), "{zeros}");
        assert!(y.iter().all(|y| *y == 0.0 || *y == 4.0 / 3.0));
        assert_eq!(of(&[4, 3], Dropout { rate: 0.0, ..QUARTER }, "1"), [1.0; 12]);
    }

    #[test]
    fn it_depends_on_seed_step_node_and_place_alone() {
        let y = of(&[6, 100], QUARTER, "1");
        assert_eq!(y, of(&[6, 100], QUARTER, "1"));
        for other in [Dropout { seed: 4, ..QUARTER }, Dropout { step: 6, ..QUARTER }] {
            assert_ne!(y, of(&[6, 100], other, "1"));
        }
        assert_ne!(y, of(&[6, 100], QUARTER, "2"));
        // A batch in parts.
        assert_eq!(y[200..], of(&[4, 100], Dropout { first: 2, ..QUARTER }, "1"));
        assert_ne!(y[..100], y[100..200]);
    }

    #[test]
    fn its_gradient_is_what_it_does_and_so_is_the_composed_form() {
        let x = Tensor::arange(0f64, 60.0, &Device::Cpu).unwrap().reshape((3, 4, 5)).unwrap();
        let x = Var::from_tensor(&(x + 1.0).unwrap()).unwrap();
        let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        for f in [dropout, composed] {
            let y = f(&x, QUARTER, "1").unwrap();
            let gradients = y.sqr().unwrap().backward().unwrap();
            let kept = of(&[3, 4, 5], QUARTER, "1");
            assert!(kept.contains(&0.0));
            let (y, g) = (numbers(&y), numbers(gradients.get(&x).unwrap()));
            for (i, kept) in kept.iter().enumerate() {
                let (x, kept) = (i as f64 + 1.0, f64::from(*kept));
                assert!((y[i] - x * kept).abs() < 1e-5 * x, "{i}");
                assert!((g[i] - 2.0 * x * kept * kept).abs() < 1e-5 * x, "{i}");
            }
        }
        assert!(dropout(&Tensor::new(1f32, &Device::Cpu).unwrap(), QUARTER, "1").is_err());
        let elsewhere = crate::linalg::without_kernels(|| dropout(&x, QUARTER, "1")).unwrap();
        assert_eq!(numbers(&elsewhere), numbers(&composed(&x, QUARTER, "1").unwrap()));
    }
}
