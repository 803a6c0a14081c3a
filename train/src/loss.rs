//! What a training step lowers: cross-entropy, with an advantage for wrong classes where margins are
//! wanted, or the mean squared error of numbers.
//!
//! With logits z, right class y, temperature T and an advantage h of every other class,
//!
//! ```text
//! loss = T · cross-entropy((z + h) / T),   h_y = −offset,   h_i = ε · L_yi  for i ≠ y
//! ```
//!
//! L_yi is the proven constant of z_y − z_i, ℓ2 → absolute value: for a network that ends in a linear
//! map, that of the rest times ‖w_y − w_i‖. A prediction whose z_y exceeds every z_i by ε·L_yi stays
//! right within an ℓ2 distance of ε, so the loss is that of the worst case within it. For a network of
//! constant 1, the offset 2√2·ε stands for it (as in Prach and Lampert, *Almost-Orthogonal Layers for
//! Efficient General-Purpose Lipschitz Networks*, 2022).
//!
//! Cross-entropy with probabilities q in place of a class y is that of y and `z_y − Σ q_i·z_i`. So smoothed
//! labels and what a teacher knows cost one product each.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Tensor};
use lipschitz_certify::robust;
use lipschitz_data::Predicts;
use lipschitz_nn::{Model, ops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Error;

/// What the loss is made of. Without a key, cross-entropy, or the mean squared error of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Taken from the right logit: 2√2·ε for a margin of ε under a network of constant 1, which is
    /// 0.3993 for 36/255.
    pub offset: f64,
    /// The ℓ2 radius that margins are to reach: each wrong logit gets ε times the proven constant of
    /// its difference to the right one.
    pub epsilon: f64,
    /// Steps between proofs of these constants.
    pub refresh_every: u64,
    /// What logits are divided by, and the loss multiplied with.
    pub temperature: f64,
    /// The share of a target that all classes have alike.
    pub label_smoothing: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        let (offset, epsilon, label_smoothing) = (0.0, 0.0, 0.0);
        Self { offset, epsilon, refresh_every: 25, temperature: 1.0, label_smoothing }
    }
}

/// The most classes that margins are asked of: each has an advantage over each.
pub(crate) const MAX_CLASSES: usize = 1024;

/// The largest margin that is asked for.
const MAX_MARGIN: f64 = 1e6;

impl LossConfig {
    /// Whether every number is in its range.
    ///
    /// # Errors
    /// One line that names the key and the range.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let no = |key: &str, x: f64, what: &str| {
            Err(Error::Config(format!("loss.{key} is {x}; it must be {what}")))
        };
        for (key, x) in [("offset", self.offset), ("epsilon", self.epsilon)] {
            if !(0.0..=MAX_MARGIN).contains(&x) {
                return no(key, x, "from 0 to 1e6");
            }
        }
        if !(self.temperature.is_finite() && self.temperature > 0.0) {
            return no("temperature", self.temperature, "above 0");
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return no("label_smoothing", self.label_smoothing, "from 0 to below 1");
        }
        Ok(())
    }

    /// Whether the loss asks for margins.
    fn has_margins(&self) -> bool {
        self.offset > 0.0 || self.epsilon > 0.0
    }
}

/// What teachers say of a batch.
pub(crate) struct Taught {
    /// `[n, classes]`.
    pub(crate) probabilities: Tensor,
    /// The share of the loss that is theirs.
    pub(crate) share: f64,
    /// What logits are divided by.
    pub(crate) temperature: f64,
}

/// The mean of z_y less `expected`, `[n]`: what cross-entropy grows by where the expected logit is in the
/// place of the right one.
fn instead(logits: &Tensor, targets: &Tensor, expected: &Tensor) -> Result<Tensor, Error> {
    let right = logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?;
    Ok((right - expected)?.mean_all()?)
}

/// The loss of one run.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    config: LossConfig,
    predicts: Predicts,
    /// The advantage of each class, by columns, where the right one is that of the row.
    advantages: Option<Tensor>,
}

/// The name of [`Loss::advantages`] in a checkpoint.
const ADVANTAGES: &str = "loss.advantages";

impl Loss {
    /// The loss of a config for this kind of targets.
    pub fn new(config: LossConfig, predicts: Predicts) -> Self {
        Self { config, predicts, advantages: None }
    }

    /// What the network has to be for this loss: a classifier for margins, of few enough classes.
    ///
    /// # Errors
    /// One line that names the key.
    pub(crate) fn check(&self, graph: &lipschitz_nn::Graph) -> Result<(), Error> {
        let c = &self.config;
        if self.predicts == Predicts::Numbers && *c != LossConfig::default() {
            let what = "the section [loss] is about classes, and the data has numbers to predict";
            return Err(Error::Config(format!("{what}; leave it out")));
        }
        if c.has_margins() && (graph.context().is_some() || graph.outputs() > MAX_CLASSES) {
            return Err(Error::Config(format!(
                "loss.offset and loss.epsilon ask for margins of a classifier of images or vectors, of \
                 up to {MAX_CLASSES} classes"
            )));
        }
        Ok(())
    }

    /// Proves the constants anew, if they are due before step `step` (from 0).
    ///
    /// # Errors
    /// A constant that is not known; candle's own.
    pub(crate) fn refresh(&mut self, model: &Model, step: u64) -> Result<(), Error> {
        let LossConfig { offset, epsilon, refresh_every, .. } = self.config;
        if !self.config.has_margins()
            || self.advantages.is_some() && !step.is_multiple_of(refresh_every.max(1))
        {
            return Ok(());
        }
        let classes = model.graph().outputs();
        let margins = match epsilon > 0.0 {
            true => Some(robust::constants(&model.detached())?),
            false => None,
        };
        let one = |at: usize| {
            let (right, other) = (at / classes, at % classes);
            let constant = margins.as_ref().map_or(0.0, |m| m.constant(right, other).to_f64());
            if right == other { -offset as f32 } else { (epsilon * constant) as f32 }
        };
        let all: Vec<f32> = (0..classes * classes).map(one).collect();
        if all.iter().any(|x| !x.is_finite()) {
            return Err(Error::Config(
                "loss.epsilon needs a network whose constant is known, and no number of f32 is ε times this \
                 one's; take a smaller one, or caps on the weights"
                    .into(),
            ));
        }
        self.advantages = Some(Tensor::from_vec(all, (classes, classes), &model.device())?);
        Ok(())
    }

    /// The mean loss of outputs `[n, outputs]` against classes `[n]` or numbers `[n, outputs]`; with
    /// what is taught, a share of it.
    ///
    /// # Errors
    /// Candle's own.
    pub(crate) fn of(
        &self,
        outputs: &Tensor,
        targets: &Tensor,
        taught: Option<&Taught>,
    ) -> Result<Tensor, Error> {
        let Some(Taught { probabilities, share, temperature: t }) = taught else {
            return self.of_targets(outputs, targets);
        };
        let logits = if *t == 1.0 { outputs.clone() } else { (outputs / *t)? };
        let expected = (&logits * probabilities)?.sum(D::Minus1)?;
        let theirs = (ops::cross_entropy(&logits, targets)?.get(0)?
            + instead(&logits, targets, &expected)?)?;
        let theirs = (theirs * (share * t * t))?;
        if *share == 1.0 {
            return Ok(theirs);
        }
        Ok(((self.of_targets(outputs, targets)? * (1.0 - share))? + theirs)?)
    }

    /// The mean loss against the targets alone.
    fn of_targets(&self, outputs: &Tensor, targets: &Tensor) -> Result<Tensor, Error> {
        if self.predicts == Predicts::Numbers {
            let targets = targets.to_dtype(outputs.dtype())?.reshape(outputs.shape())?;
            return Ok((outputs - targets)?.sqr()?.mean_all()?);
        }
        let LossConfig { temperature, label_smoothing, .. } = self.config;
        let mut logits = outputs.clone();
        if let Some(advantages) = &self.advantages {
            let own = advantages.index_select(targets, 0)?.to_dtype(logits.dtype())?;
            logits = (logits + own)?;
        }
        if temperature != 1.0 {
            logits = (logits / temperature)?;
        }
        let mut loss = ops::cross_entropy(&logits, targets)?.get(0)?;
        if label_smoothing > 0.0 {
            let spread = instead(&logits, targets, &logits.mean(D::Minus1)?)?;
            loss = (loss + (spread * label_smoothing)?)?;
        }
        Ok(if temperature != 1.0 { (loss * temperature)? } else { loss })
    }

    /// What a resumed run needs: constants are proven every few steps alone.
    pub(crate) fn state(&self) -> Option<(String, Tensor)> {
        self.advantages.as_ref().map(|t| (ADVANTAGES.to_string(), t.clone()))
    }

    /// Restores what [`Loss::state`] gave.
    pub(crate) fn load_state(
        &mut self,
        state: &BTreeMap<String, Tensor>,
        device: &Device,
    ) -> Result<(), Error> {
        let saved = state.get(ADVANTAGES);
        self.advantages = saved.map(|t| t.to_dtype(DType::F32)?.to_device(device)).transpose()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(values: &[f32], shape: (usize, usize)) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn number(loss: &Loss, z: &Tensor, y: &Tensor) -> f64 {
        f64::from(loss.of(z, y, None).unwrap().to_scalar::<f32>().unwrap())
    }

    const Z: [f32; 6] = [1.0, -0.5, 2.0, 0.25, 3.0, -1.0];

    /// The definition, in f64 and one row after the other.
    fn oracle(h: &dyn Fn(usize, usize) -> f64, t: f64, s: f64) -> f64 {
        let row = |(z, y): (&[f32], usize)| {
            let x: Vec<f64> =
                z.iter().enumerate().map(|(i, z)| (f64::from(*z) + h(y, i)) / t).collect();
            let sum = x.iter().map(|x| x.exp()).sum::<f64>().ln();
            let target = |i: usize| s / 3.0 + if i == y { 1.0 - s } else { 0.0 };
            t * x.iter().enumerate().map(|(i, x)| target(i) * (sum - x)).sum::<f64>()
        };
        Z.chunks(3).zip([2, 0]).map(row).sum::<f64>() / 2.0
    }

    #[test]
    fn it_is_what_its_definition_says() {
        let (z, y) = (tensor(&Z, (2, 3)), Tensor::new(&[2u32, 0], &Device::Cpu).unwrap());
        for (offset, t, s) in
            [(0.0, 1.0, 0.0), (0.4, 1.0, 0.0), (0.4, 0.25, 0.0), (0.0, 1.0, 0.1), (1.5, 3.0, 0.3)]
        {
            let config =
                LossConfig { offset, temperature: t, label_smoothing: s, ..LossConfig::default() };
            let mut loss = Loss::new(config, Predicts::Classes);
            let pair = |i: usize, j: usize| 0.1 * (1 + i + j) as f64;
            for pairs in [false, true] {
                let h = |right: usize, other: usize| match right == other {
                    true => -offset,
                    false if pairs => pair(right, other),
                    false => 0.0,
                };
                let all: Vec<f32> = (0..9).map(|i| h(i / 3, i % 3) as f32).collect();
                loss.advantages = Some(tensor(&all, (3, 3)));
                let (found, wanted) = (number(&loss, &z, &y), oracle(&h, t, s));
                assert!((found - wanted).abs() < 1e-5 * wanted.abs().max(1.0), "{found} {wanted}");
            }
        }
    }

    #[test]
    fn its_gradient_is_that_of_a_change() {
        let config = LossConfig { temperature: 0.5, label_smoothing: 0.2, ..LossConfig::default() };
        let mut loss = Loss::new(config, Predicts::Classes);
        loss.advantages = Some(tensor(&[-0.5, 0.2, 0.3, 0.2, -0.5, 0.1, 0.3, 0.1, -0.5], (3, 3)));
        let y = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
        let z = candle_core::Var::from_tensor(&tensor(&Z, (2, 3))).unwrap();
        let gradients = loss.of(&z, &y, None).unwrap().backward().unwrap();
        let gradient = gradients.get(&z).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut values = Z;
                values[i] += by;
                number(&loss, &tensor(&values, (2, 3)), &y)
            };
            let wanted = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((f64::from(*found) - wanted).abs() < 1e-3, "{i}: {found} {wanted}");
        }
    }

    /// A teacher that is sure of the right class is that class, without the margins that are asked of it; the
    /// gradient is that of a change.
    #[test]
    fn what_is_taught_is_a_share_of_the_loss() {
        let y = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
        let config = LossConfig { offset: 0.3, label_smoothing: 0.1, ..LossConfig::default() };
        let mut loss = Loss::new(config, Predicts::Classes);
        loss.advantages = Some(tensor(&[-0.3, 0.0, 0.0, 0.0, -0.3, 0.0, 0.0, 0.0, -0.3], (3, 3)));
        let of = |loss: &Loss, z: &Tensor, p: &[f32], share: f64, temperature: f64| {
            let taught = Taught { probabilities: tensor(p, (2, 3)), share, temperature };
            loss.of(z, &y, Some(&taught)).unwrap()
        };
        let number = |x: Tensor| f64::from(x.to_scalar::<f32>().unwrap());
        let z = tensor(&Z, (2, 3));
        let sure = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0];
        let plain = number(Loss::default().of(&z, &y, None).unwrap());
        assert!((number(of(&loss, &z, &sure, 1.0, 1.0)) - plain).abs() < 1e-6);
        let own = number(loss.of(&z, &y, None).unwrap());
        let half = number(of(&loss, &z, &sure, 0.5, 1.0));
        assert!((half - 0.5 * (own + plain)).abs() < 1e-6 && (own - plain).abs() > 1e-2);

        let p = [0.2, 0.5, 0.3, 0.6, 0.3, 0.1];
        let z = candle_core::Var::from_tensor(&z).unwrap();
        let gradients = of(&loss, &z, &p, 0.7, 3.0).backward().unwrap();
        let gradient = gradients.get(&z).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, found) in gradient.iter().enumerate() {
            let moved = |by: f32| {
                let mut values = Z;
                values[i] += by;
                number(of(&loss, &tensor(&values, (2, 3)), &p, 0.7, 3.0))
            };
            let wanted = (moved(0.01) - moved(-0.01)) / 0.02;
            assert!((f64::from(*found) - wanted).abs() < 1e-3, "{i}: {found} {wanted}");
        }
    }

    #[test]
    fn numbers_have_squared_errors() {
        let loss = Loss::new(LossConfig::default(), Predicts::Numbers);
        let (z, y) = (tensor(&[1.0, 2.0, 3.0, 5.0], (2, 2)), tensor(&[1.0, 0.0, 0.0, 5.0], (2, 2)));
        assert_eq!(number(&loss, &z, &y), 13.0 / 4.0);
    }

    /// The advantages are those of the proof: a logit of a linear classifier that leads by exactly
    /// ε·‖w_y − w_i‖ is no better than a draw.
    #[test]
    fn advantages_are_the_constants_of_pairs() {
        use lipschitz_nn::Graph;
        use lipschitz_nn::graph::{Input, Node, Op};
        let linear = Op::Linear { inputs: 2, outputs: 3, bias: false };
        let graph = Graph::new(Input::Vector { dim: 2 }, vec![Node::new("head", linear)]).unwrap();
        let w = tensor(&[3.0, 0.0, 0.0, 4.0, 0.0, 0.0], (3, 2));
        let model = Model::new(graph, [("head.weight".to_string(), w)].into()).unwrap();
        let config = LossConfig { epsilon: 0.1, offset: 0.7, ..LossConfig::default() };
        let mut loss = Loss::new(config, Predicts::Classes);
        loss.refresh(&model, 0).unwrap();
        let found = loss.advantages.as_ref().unwrap().to_vec2::<f32>().unwrap();
        let wanted = [[-0.7, 0.5, 0.3], [0.5, -0.7, 0.4], [0.3, 0.4, -0.7]];
        for (found, wanted) in found.iter().flatten().zip(wanted.iter().flatten()) {
            assert!((found - wanted).abs() < 1e-6, "{found} {wanted}");
        }
        // Between proofs they stay; a saved state restores them.
        let state: BTreeMap<String, Tensor> = loss.state().into_iter().collect();
        let mut other = Loss::new(config, Predicts::Classes);
        other.load_state(&state, &Device::Cpu).unwrap();
        assert_eq!(other.advantages.unwrap().to_vec2::<f32>().unwrap(), found);
    }
}
