//! Text from a language model, a token at a time.

use anyhow::{Result, bail};
use candle_core::{DType, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::Tokenizer;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use lipschitz_data::text::Codec;

/// How tokens are drawn.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// How many.
    pub tokens: usize,
    /// Divides the logits; 0 takes the likeliest.
    pub temperature: f64,
    /// Drives the draws.
    pub seed: u64,
}

/// The prompt and what the model writes after it.
///
/// # Errors
/// A prompt with characters that the model does not know, or a model that reads no tokens.
pub fn sample(
    model: &Model,
    tokenizer: &Tokenizer,
    prompt: &str,
    sampling: Sampling,
) -> Result<String> {
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        bail!("temperature {}: must be a number, 0 or above", sampling.temperature)
    }
    let Some(context) = model.graph().context() else {
        bail!("the model reads no tokens, so it writes no text")
    };
    let codec = Codec::new(tokenizer)?;
    let mut ids = codec.encode(prompt)?;
    if ids.is_empty() {
        bail!("the prompt is empty; give at least one character")
    }
    let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
    for _ in 0..sampling.tokens {
        let window = &ids[ids.len().saturating_sub(context)..];
        let x = Tensor::new(window, &model.device())?.unsqueeze(0)?;
        let logits = model
            .forward(&x)?
            .get(0)?
            .get(window.len() - 1)?
            .to_dtype(DType::F64)?
            .to_vec1::<f64>()?;
        // Ids beyond the tokenizer's are padding of the table.
        ids.push(draw(
            &logits[..logits.len().min(codec.vocabulary())],
            sampling.temperature,
            &mut rng,
        ));
    }
    codec.decode(&ids)
}

fn draw(logits: &[f64], temperature: f64, rng: &mut ChaCha8Rng) -> u32 {
    let best = (0..logits.len()).fold(0, |b, i| if logits[i] > logits[b] { i } else { b });
    if temperature == 0.0 {
        return best as u32;
    }
    let weights: Vec<f64> =
        logits.iter().map(|l| ((l - logits[best]) / temperature).exp()).collect();
    let unit = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    let mut left = unit * weights.iter().sum::<f64>();
    for (i, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return i as u32;
        }
    }
    best as u32
}
