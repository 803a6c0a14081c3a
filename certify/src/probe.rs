//! The largest sensitivity found: a gradient search over pairs of inputs. Each pair gives a lower
//! bound on the true constant, with an allowance for the rounding of both forward passes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use candle_core::{D, DType, Device, Tensor, Var};
use lipschitz_nn::graph::{Graph, Input, Node, Op, join};
use lipschitz_nn::random::{self, Stream};
use lipschitz_nn::{Model, Seen};
use rand::Rng;

use crate::Error;
use crate::bound::{F64, WeightNorms, rounding};
use crate::spectral::{Matrix, Method, top_right_singular_vector};
use crate::upper::Upper;

/// The steepest pair of inputs found.
#[derive(Clone, Debug)]
pub struct Found {
    /// `‖f(a) − f(b)‖ / ‖a − b‖` as computed in f64, each norm the largest ℓ2 norm of a token.
    pub sensitivity: f64,
    /// What the true ratio is at least, whatever was rounded: a lower bound on the constant. 0 where
    /// rounding may be all of it.
    pub at_least: f64,
    /// The inputs: embedding vectors `[1, tokens, dim]`, images or vectors, in f64.
    pub pair: (Tensor, Tensor),
}

impl Found {
    /// What there is to say about a constant that is certified to be at most `certified`: what is
    /// certain, or where nothing is, what was computed; 0 where that can only be rounding.
    pub fn value(&self, certified: Upper) -> f64 {
        if self.at_least > 0.0 {
            self.at_least
        } else if Upper::from_f64(self.sensitivity) <= certified {
            self.sensitivity
        } else {
            0.0
        }
    }
}

/// Searches from `starts` (embedding vectors `[batch, tokens, dim]`, images or vectors) for the
/// steepest pair whose tokens have ℓ2 norm at most `radius`, with `iterations` steps of gradient
/// ascent, on the CPU in f64.
///
/// # Errors
/// [`Error::Network`] if the starts do not fit the network; [`Error::Unknown`] if no pair gave a
/// finite number.
pub fn search(
    model: &Model,
    starts: &Tensor,
    radius: f64,
    iterations: usize,
) -> Result<Found, Error> {
    let network = Network::new(model, starts.dims(), radius)?;
    let a = network.project(&network.rows(starts)?)?;
    let mut best = None;
    network.climb(&a, &unit(&a)?, iterations, &mut best)?;
    network.found(best)
}

/// Searches until `budget` is spent. It starts from `inputs` (real ones, as for [`search`], at
/// least one), from real inputs scaled to the sphere, from tokens that tie in attention (opposite
/// points along the directions that a head of some layer reads most), from random inputs, and
/// repeatedly from the steepest pair so far.
///
/// `report` is called with the largest sensitivity so far, again and again.
///
/// # Errors
/// As [`search`].
pub fn probe(
    model: &Model,
    inputs: &Tensor,
    radius: f64,
    budget: Duration,
    report: &mut dyn FnMut(f64),
) -> Result<Found, Error> {
    /// Starts per batch.
    const BATCH: usize = 4;
    let (start, count) = (Instant::now(), inputs.dim(0)?);
    let network = Network::new(model, inputs.dims(), radius)?;
    let all = network.rows(inputs)?;
    let directions = if network.tokens { reading_directions(model)? } else { Vec::new() };
    let mut rng = random::seeded(0);
    let mut best: Option<Pair> = None;
    for round in 0.. {
        let picked: Vec<u32> =
            (0..BATCH.min(count)).map(|i| ((round / 5 * BATCH + i) % count) as u32).collect();
        let real = all.index_select(&Tensor::new(picked, &Device::Cpu)?, 0)?;
        let noise = noise(real.dims(), &mut rng)?;
        let sphere = |x: &Tensor| -> Result<Tensor, Error> {
            if radius.is_finite() { Ok((unit(x)? * radius)?) } else { Ok(x.clone()) }
        };
        let (a, direction, iterations) = match (round % 5, &best, directions.is_empty()) {
            // Near the steepest pair, with more iterations.
            (1 | 3, Some(pair), _) => {
                let a = pair.a.unsqueeze(0)?;
                let towards = unit(&(pair.b.unsqueeze(0)? - &a)?)?;
                let noise = unit(&noise.narrow(0, 0, 1)?)?;
                let share = [0.0, 0.03, 0.3][round / 5 % 3];
                let size = if radius.is_finite() { radius } else { 1.0 };
                (network.project(&(a + (&noise * (share * size))?)?)?, towards, 60)
            }
            (2, _, false) => {
                let d = &directions[round / 5 % directions.len()];
                let signs: Vec<f64> = (0..real.dim(1)?)
                    .map(|_| if rng.next_u32().is_multiple_of(2) { 1.0 } else { -1.0 })
                    .collect();
                let signs = Tensor::new(signs, &Device::Cpu)?.reshape((1, (), 1))?;
                let tied =
                    signs.broadcast_mul(&d.reshape((1, 1, ()))?)?.broadcast_as(real.dims())?;
                (sphere(&(tied + (noise.clone() * 0.05)?)?)?, unit(&noise)?, 30)
            }
            (4, _, _) => (sphere(&noise)?, unit(&noise)?, 30),
            (2, _, true) => (network.project(&(&real + &noise)?)?, unit(&noise)?, 30),
            _ if round % 10 == 5 => (sphere(&real)?, unit(&noise)?, 30),
            _ => (network.project(&real)?, unit(&noise)?, 30),
        };
        network.climb(&a, &direction, iterations, &mut best)?;
        report(best.as_ref().map_or(0.0, Pair::found));
        if start.elapsed() >= budget {
            break;
        }
    }
    network.found(best)
}

/// The input directions that the heads read most: the top right singular vectors of V_h, Q_h and
/// K_h of every attention whose width is the input's.
fn reading_directions(model: &Model) -> Result<Vec<Tensor>, Error> {
    fn visit(nodes: &[Node], prefix: &str, out: &mut Vec<(String, usize)>) {
        for node in nodes {
            let path = node.path(prefix);
            visit(node.op.body().unwrap_or_default(), &path, out);
            if let Op::Attention(a) = &node.op {
                let heads =
                    [("value", a.key_value_heads), ("query", a.heads), ("key", a.key_value_heads)];
                out.extend(
                    heads.map(|(name, heads)| (join(&path, &format!("{name}.weight")), heads)),
                );
            }
        }
    }
    let Some(Op::Embedding { dim, .. }) = model.graph().nodes().first().map(|node| &node.op) else {
        return Ok(Vec::new());
    };
    let mut weights = Vec::new();
    visit(model.graph().nodes(), "", &mut weights);
    let mut out = Vec::new();
    for (name, heads) in weights {
        let weight = Matrix::from_tensor(&name, &model.weights()[&name])?;
        if weight.columns != *dim {
            continue;
        }
        for head in 0..heads {
            out.push(Tensor::new(
                top_right_singular_vector(&weight.row_block(head, heads)),
                &Device::Cpu,
            )?);
        }
    }
    Ok(out)
}

/// Uniform in [-1, 1].
pub(crate) fn noise(dims: &[usize], rng: &mut Stream) -> Result<Tensor, Error> {
    let one = |_| random::symmetric(rng);
    Ok(Tensor::from_vec(
        (0..dims.iter().product()).map(one).collect::<Vec<f64>>(),
        dims,
        &Device::Cpu,
    )?)
}

/// The steepest pair so far, as rows.
struct Pair {
    sensitivity: f64,
    at_least: f64,
    a: Tensor,
    b: Tensor,
}

impl Pair {
    /// What is certain, or where nothing is, what was computed.
    fn found(&self) -> f64 {
        if self.at_least > 0.0 { self.at_least } else { self.sensitivity }
    }

    /// Whether it is steeper for certain, or where nothing is certain, as computed.
    fn is_above(&self, other: &Pair) -> bool {
        let key = |pair: &Pair| (pair.at_least, pair.sensitivity);
        key(self) > key(other)
    }
}

/// How far outputs may be from those of the function in real arithmetic.
struct Allowance<'a> {
    graph: &'a Graph,
    norms: WeightNorms<'a>,
    /// By the binary exponent of the radius that they hold for.
    known: RefCell<BTreeMap<i32, f64>>,
}

impl Allowance<'_> {
    /// For inputs whose tokens have ℓ2 norm up to `radius`.
    fn within(&self, radius: f64) -> Result<f64, Error> {
        let exponent = (radius.max(f64::MIN_POSITIVE).log2().ceil() + 1.0) as i32;
        if let Some(known) = self.known.borrow().get(&exponent) {
            return Ok(*known);
        }
        let ball = Upper::from_f64(2f64.powi(exponent));
        let error = rounding(self.graph, &self.norms, ball, F64)?.to_f64();
        self.known.borrow_mut().insert(exponent, error);
        Ok(error)
    }
}

/// Not above the true ratio of two norms, where both ends of the first are off by at most `off`, and
/// the norms are of `outputs` and `inputs` elements. A norm of d elements is off by a factor of at
/// most 1 + γ, with γ that of d + 8 operations.
fn at_least(change: f64, off: f64, apart: f64, (outputs, inputs): (usize, usize)) -> f64 {
    let rounded = |d: usize| 1.0 + 1.1 * (d as f64 + 8.0) * (f64::EPSILON / 2.0);
    let change = change / rounded(outputs) - 2.0 * off * (1.0 + f64::EPSILON);
    // A few more operations above.
    let ratio = change / (apart * rounded(inputs)) * (1.0 - 8.0 * f64::EPSILON);
    if ratio.is_finite() { ratio.max(0.0) } else { 0.0 }
}

/// A network as a function of rows `[batch, tokens, width]` (images and vectors are one token), in
/// f64 on the CPU.
pub(crate) struct Network<'a> {
    model: Model,
    allowance: Allowance<'a>,
    tokens: bool,
    /// The shape of the network's inputs.
    natural: Vec<usize>,
    radius: f64,
}

impl<'a> Network<'a> {
    pub(crate) fn new(model: &'a Model, natural: &[usize], radius: f64) -> Result<Self, Error> {
        let tokens = matches!(model.graph().input(), Input::Tokens { .. });
        let norms = WeightNorms::new(model, Method::Proven, &|_| {});
        let allowance = Allowance { graph: model.graph(), norms, known: RefCell::default() };
        Ok(Self {
            model: model.to(&Device::Cpu, DType::F64)?,
            allowance,
            tokens,
            natural: natural.to_vec(),
            radius,
        })
    }

    pub(crate) fn rows(&self, inputs: &Tensor) -> Result<Tensor, Error> {
        let x = inputs.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.detach();
        Ok(if self.tokens { x } else { x.reshape((x.dim(0)?, 1, ()))? })
    }

    pub(crate) fn run(&self, x: &Tensor) -> Result<Tensor, Error> {
        self.run_in(&self.model, x)
    }

    /// The same by a copy of the network in another type.
    pub(crate) fn run_in(&self, model: &Model, x: &Tensor) -> Result<Tensor, Error> {
        let x = x.to_dtype(model.dtype())?;
        Self::rows_of(match self.tokens {
            true => model.forward_embeddings(&x)?,
            false => model.forward(&self.batch(&x)?)?,
        })
    }

    /// The same with `through` in front of every operation.
    pub(crate) fn run_tapped(
        &self,
        model: &Model,
        x: &Tensor,
        through: &dyn Fn(&Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor, Error> {
        let x = x.to_dtype(model.dtype())?;
        let mut tap = |_: Seen<'_>, x: Tensor| Ok(through(&x)?);
        Self::rows_of(match self.tokens {
            true => model.forward_embeddings_tapped(&x, &mut tap)?,
            false => model.forward_tapped(&self.batch(&x)?, &mut tap)?,
        })
    }

    /// Rows as a batch of what the network reads.
    fn batch(&self, x: &Tensor) -> Result<Tensor, Error> {
        let mut dims = self.natural.clone();
        dims[0] = x.dim(0)?;
        Ok(x.reshape(dims)?)
    }

    fn rows_of(y: Tensor) -> Result<Tensor, Error> {
        // One output for a whole input is that of one token; of several tokens the largest counts.
        Ok(if y.rank() == 3 { y } else { y.reshape((y.dim(0)?, 1, ()))? })
    }

    fn found(&self, best: Option<Pair>) -> Result<Found, Error> {
        let Pair { sensitivity, at_least, a, b } = best.ok_or_else(|| {
            Error::Unknown("the network's sensitivity: every pair gave no finite number".into())
        })?;
        Ok(Found { sensitivity, at_least, pair: (self.shaped(a)?, self.shaped(b)?) })
    }

    /// One input as the network reads it.
    pub(crate) fn shaped(&self, x: Tensor) -> Result<Tensor, Error> {
        let mut dims = self.natural.clone();
        dims[0] = 1;
        Ok(x.reshape(dims)?)
    }

    /// How far outputs in f64 may be from those of the function, on a ball of this radius.
    pub(crate) fn allowance(&self, radius: f64) -> Result<f64, Error> {
        self.allowance.within(radius)
    }

    /// Rows scaled back into the ball, slightly inside so that rounding does not leave it.
    pub(crate) fn project(&self, x: &Tensor) -> Result<Tensor, Error> {
        if !self.radius.is_finite() {
            return Ok(x.clone());
        }
        let factor = (row_norms(x)? + 1e-300)?.recip()?.affine(self.radius * (1.0 - 1e-12), 0.0)?;
        Ok(x.broadcast_mul(&factor.minimum(&factor.ones_like()?)?)?)
    }

    /// Gradient ascent on both ends of pairs that start at `a` and differ along `direction`.
    fn climb(
        &self,
        a: &Tensor,
        direction: &Tensor,
        iterations: usize,
        best: &mut Option<Pair>,
    ) -> Result<(), Error> {
        let (mut a, mut direction) = (a.clone(), direction.clone());
        let size = row_norms(&a)?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1e-3);
        for iteration in 0..iterations {
            // Far pairs cross flat regions, near pairs measure the Jacobian.
            let step = size * if iteration % 4 == 0 { 0.3 } else { 1e-4 };
            let progress = iteration as f64 / iterations as f64;
            let b = self.project(&(&a + (&direction * step)?)?)?;
            let (x, y) = (Var::from_tensor(&a)?, Var::from_tensor(&b)?);
            let change = (self.run(y.as_tensor())? - self.run(x.as_tensor())?)?;
            let outputs = row_norms(&change.detach())?.squeeze(2)?;
            let worst = outputs.max(1)?.to_vec1::<f64>()?;
            let apart = row_norms(&(y.as_tensor() - x.as_tensor())?.detach())?
                .squeeze(2)?
                .max(1)?
                .to_vec1::<f64>()?;
            let reach = largest(x.as_tensor())?.max(largest(y.as_tensor())?);
            let off = self.allowance.within(reach)?;
            let widths = (change.dim(D::Minus1)?, x.dim(D::Minus1)?);
            for (i, (worst, apart)) in worst.iter().zip(&apart).enumerate() {
                // For closer pairs, rounding in the forward pass would count as sensitivity.
                if *apart < 1e-7 * size {
                    continue;
                }
                let sensitivity = worst / apart;
                if !sensitivity.is_finite() {
                    continue;
                }
                let at_least = at_least(*worst, off, *apart, widths);
                let (a, b) = (x.as_tensor().get(i)?.detach(), y.as_tensor().get(i)?.detach());
                let pair = Pair { sensitivity, at_least, a, b };
                if best.as_ref().is_none_or(|best| pair.is_above(best)) {
                    *best = Some(pair);
                }
            }
            // Ascend along the output change of the worst token of each pair.
            let at = outputs.argmax(1)?.to_vec1::<u32>()?;
            let picked: Vec<Tensor> = at
                .iter()
                .enumerate()
                .map(|(i, t)| change.get(i)?.get(*t as usize))
                .collect::<Result<_, _>>()?;
            let picked = Tensor::stack(&picked, 0)?;
            let goal = (&picked * unit(&picked.detach())?)?.sum_all()?;
            let gradients = goal.backward()?;
            let gradient = |v: &Var| {
                gradients.get(v.as_tensor()).map_or_else(|| v.zeros_like(), |g| Ok(g.detach()))
            };
            let (toward, base) = (gradient(&y)?, gradient(&x)?);
            direction = unit(&toward)?;
            // Moving both ends by the same amount changes the output change by the sum of the two
            // gradients.
            let climb = (unit(&(toward + base)?)? * (0.1 * size * (1.0 - progress)))?;
            a = self.project(&(a + climb)?)?;
        }
        Ok(())
    }
}

/// The largest ℓ2 norm of a token.
fn largest(x: &Tensor) -> Result<f64, Error> {
    Ok(row_norms(&x.detach())?.flatten_all()?.max(0)?.to_scalar::<f64>()?)
}

/// ℓ2 norms over the last dimension, which is kept.
pub(crate) fn row_norms(x: &Tensor) -> Result<Tensor, Error> {
    Ok(x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// Each row over its norm; a zero row becomes the constant unit vector.
pub(crate) fn unit(x: &Tensor) -> Result<Tensor, Error> {
    // Far below any relevant element, and its square is still a normal number.
    let x = (x + 1e-150)?;
    Ok(x.broadcast_div(&row_norms(&x)?)?)
}
