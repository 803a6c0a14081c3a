//! Text from a language model, token by token.

use candle_core::{DType, Tensor};
use lipschitz_data::codec::Codec;
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::Tokenizer;
use lipschitz_nn::graph::Shape;
use lipschitz_nn::random::{self, Stream};

use crate::Error;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// How many to write.
    pub tokens: usize,
    /// Divides the logits; at 0 the likeliest token is taken.
    pub temperature: f64,
    /// Seeds the draws.
    pub seed: u64,
}

/// The prompt and what the model writes after it.
///
/// # Errors
/// A prompt with characters that the model does not know, a model that reads no tokens, or one
/// whose outputs are not finite.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    sampling: Sampling,
) -> Result<String, Error> {
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return Err(Error::Temperature(sampling.temperature));
    }
    let context = model.graph().context().ok_or(Error::WritesNoText)?;
    if !matches!(model.graph().output(), Shape::Tokens(_)) {
        return Err(lipschitz_data::Error::PredictsNoTokens.into());
    }
    lipschitz_data::check_causal(model.graph())?;
    let codec = Codec::new(tokenizer)?;
    let mut ids = codec.encode(prompt)?;
    if ids.is_empty() {
        return Err(Error::EmptyPrompt);
    }
    let mut rng = random::seeded(sampling.seed);
    for _ in 0..sampling.tokens {
        let window = &ids[ids.len().saturating_sub(context)..];
        let x = Tensor::new(window, &model.device())?.unsqueeze(0)?;
        let logits = model
            .forward(&x)?
            .get(0)?
            .get(window.len() - 1)?
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()?;
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(Error::NotFinite);
        }
        // Ids beyond the tokenizer's pad the embedding.
        ids.push(draw(
            &logits[..logits.len().min(codec.vocabulary())],
            sampling.temperature,
            &mut rng,
        ));
    }
    Ok(codec.decode(&ids)?)
}

fn draw(logits: &[f64], temperature: f64, rng: &mut Stream) -> u32 {
    let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
    if temperature == 0.0 {
        return best as u32;
    }
    let weights: Vec<f64> =
        logits.iter().map(|l| ((l - logits[best]) / temperature).exp()).collect();
    let mut left = random::unit(rng) * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return i as u32;
        }
    }
    best as u32
}
