//! Projected gradient ascent in ℓ2 or ℓ∞ with restarts, in f64 on the CPU.
//!
//! Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks* (ICLR 2018).
//! Restarts alternate between the margin, whose gradient does not vanish for a confident network,
//! and the cross-entropy.

use candle_core::{D, DType, Device, Tensor, Var};
use lipschitz_nn::random::{self, Stream};

use crate::Error;
use crate::probe::row_norms;

/// The effort of an attack.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Steps per search.
    pub steps: usize,
    /// Searches per input; the first starts at the input itself, the others at random points around
    /// it.
    pub restarts: usize,
}

/// Which tokens may move, each by at most the radius; an image or a vector is one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// One token: first the one with the largest gradient, in later searches those at the end.
    One,
    /// All tokens.
    All,
}

/// An attack on a network.
pub(crate) struct Attack<'a> {
    /// From `[batch, tokens, width]` to logits `[batch, outputs]`.
    pub network: &'a dyn Fn(&Tensor) -> Result<Tensor, Error>,
    /// The effort.
    pub effort: Effort,
    /// Which tokens may move.
    pub reach: Reach,
    /// Whether all elements stay in \[0, 1\].
    pub unit: bool,
    /// Whether the radius is that of each element rather than of the ℓ2 norm of a token.
    pub linf: bool,
}

/// The length of a step is this times the radius over the number of steps.
const STRIDE: f64 = 2.5;

impl Attack<'_> {
    /// For each input of `x` (`[batch, tokens, width]`, f64), whether a point within ℓ2 distance
    /// `radius` per token was found at which another output is at least as large as that of its
    /// class.
    ///
    /// # Errors
    /// [`Error::Network`] if the inputs do not fit the network.
    pub(crate) fn run(
        &self,
        x: &Tensor,
        classes: &[usize],
        radius: f64,
        seed: u64,
    ) -> Result<Vec<bool>, Error> {
        let mut broken = vec![false; classes.len()];
        let mut rng = random::seeded(seed);
        for restart in 0..self.effort.restarts.max(1) {
            let left: Vec<usize> = (0..classes.len()).filter(|i| !broken[*i]).collect();
            if left.is_empty() {
                break;
            }
            let rows =
                Tensor::new(left.iter().map(|i| *i as u32).collect::<Vec<_>>(), &Device::Cpu)?;
            let own: Vec<usize> = left.iter().map(|i| classes[*i]).collect();
            let found = self.search(&x.index_select(&rows, 0)?, &own, radius, restart, &mut rng)?;
            left.iter().zip(found).for_each(|(i, found)| broken[*i] |= found);
        }
        Ok(broken)
    }

    fn search(
        &self,
        x: &Tensor,
        classes: &[usize],
        radius: f64,
        restart: usize,
        rng: &mut Stream,
    ) -> Result<Vec<bool>, Error> {
        let mask = match self.reach {
            Reach::All => None,
            Reach::One => Some(self.one_token(x, classes, restart)?),
        };
        let masked = |d: Tensor| -> Result<Tensor, Error> {
            Ok(match &mask {
                Some(mask) => d.broadcast_mul(mask)?,
                None => d,
            })
        };
        let mut found = vec![false; classes.len()];
        let mut moved = x.zeros_like()?;
        if restart > 0 {
            let noise: Vec<f64> =
                (0..x.elem_count()).map(|_| 0.5 * random::symmetric(rng)).collect();
            moved = masked(
                (self.unit(&Tensor::from_vec(noise, x.dims(), &Device::Cpu)?)? * (0.9 * radius))?,
            )?;
        }
        for step in 0..=self.effort.steps {
            let at = self.inside(&(x + &moved)?, x, radius)?;
            let at = Var::from_tensor(&at)?;
            let logits = (self.network)(at.as_tensor())?;
            for ((found, class), z) in
                found.iter_mut().zip(classes).zip(logits.detach().to_vec2::<f64>()?)
            {
                *found |= beaten(&z, *class);
            }
            if step == self.effort.steps || found.iter().all(|f| *f) {
                break;
            }
            let goal = if restart.is_multiple_of(2) {
                margin(&logits, classes)?
            } else {
                cross_entropy(&logits, classes)?
            };
            let gradients = goal.sum_all()?.backward()?;
            let Some(gradient) = gradients.get(at.as_tensor()) else { break };
            let stride = STRIDE * radius / self.effort.steps as f64;
            let step = (self.unit(&masked(gradient.detach())?)? * stride)?;
            moved = (self.inside(&(at.as_detached_tensor() + masked(step)?)?, x, radius)? - x)?;
        }
        Ok(found)
    }

    /// Points projected to within the radius per token, slightly inside, and into the unit cube,
    /// which contains `x`.
    fn inside(&self, at: &Tensor, x: &Tensor, radius: f64) -> Result<Tensor, Error> {
        let moved = (at - x)?;
        if self.linf {
            let most = radius * (1.0 - 1e-12);
            let at = (x + moved.clamp(-most, most)?)?;
            return Ok(if self.unit { at.clamp(0.0, 1.0)? } else { at });
        }
        let factor = ((row_norms(&moved)? + 1e-300)?.recip()? * (radius * (1.0 - 1e-12)))?;
        let at = (x + moved.broadcast_mul(&factor.minimum(&factor.ones_like()?)?)?)?;
        Ok(if self.unit { at.clamp(0.0, 1.0)? } else { at })
    }

    /// The steepest change of size 1 per token.
    fn unit(&self, x: &Tensor) -> Result<Tensor, Error> {
        if self.linf { Ok(x.sign()?) } else { unit(x) }
    }

    /// A mask `[batch, tokens, 1]` with a single 1 per input.
    fn one_token(&self, x: &Tensor, classes: &[usize], restart: usize) -> Result<Tensor, Error> {
        let (batch, tokens, _) = x.dims3()?;
        let picked: Vec<u32> = if restart > 0 {
            vec![(tokens - 1 - (restart - 1) % tokens) as u32; batch]
        } else {
            let at = Var::from_tensor(x)?;
            let goal = margin(&(self.network)(at.as_tensor())?, classes)?;
            let gradients = goal.sum_all()?.backward()?;
            match gradients.get(at.as_tensor()) {
                Some(g) => {
                    row_norms(&g.detach())?.squeeze(D::Minus1)?.argmax(D::Minus1)?.to_vec1()?
                }
                None => vec![tokens as u32 - 1; batch],
            }
        };
        let mask = picked
            .iter()
            .flat_map(|p| (0..tokens).map(move |t| f64::from(u8::from(t as u32 == *p))))
            .collect();
        Ok(Tensor::from_vec::<_, f64>(mask, (batch, tokens, 1), &Device::Cpu)?)
    }
}

/// Whether another logit is at least as large as that of the class, or any is not finite.
pub(super) fn beaten(logits: &[f64], class: usize) -> bool {
    logits.iter().enumerate().any(|(j, z)| !z.is_finite() || (j != class && *z >= logits[class]))
}

/// The largest other logit minus that of the class, `[batch]`.
fn margin(logits: &Tensor, classes: &[usize]) -> Result<Tensor, Error> {
    let own = one_hot(logits, classes)?;
    let others = (logits - (&own * 1e30)?)?.max(D::Minus1)?;
    Ok((others - (logits * own)?.sum(D::Minus1)?)?)
}

/// Cross-entropy of the class, `[batch]`.
fn cross_entropy(logits: &Tensor, classes: &[usize]) -> Result<Tensor, Error> {
    let log = candle_nn::ops::log_softmax(logits, D::Minus1)?;
    Ok((log * one_hot(logits, classes)?)?.sum(D::Minus1)?.neg()?)
}

fn one_hot(logits: &Tensor, classes: &[usize]) -> Result<Tensor, Error> {
    let (batch, outputs) = logits.dims2()?;
    let hot: Vec<f64> = classes
        .iter()
        .flat_map(|c| (0..outputs).map(move |j| f64::from(u8::from(j == *c))))
        .collect();
    Ok(Tensor::from_vec(hot, (batch, outputs), &Device::Cpu)?.to_dtype(DType::F64)?)
}

/// Each token divided by its norm; zero stays zero.
fn unit(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.broadcast_div(&(row_norms(x)? + 1e-300)?)?)
}
