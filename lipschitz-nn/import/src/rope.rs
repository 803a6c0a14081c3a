//! Rotary positions of a config: how frequencies are scaled for longer contexts.

use std::f64::consts::TAU;

use lipschitz_nn::Error;
use lipschitz_nn::graph::{Pairing, Rotary};

use crate::config::ConfigReader;
use lipschitz_nn::checkpoint::Dialect;

/// Rotary positions, and what comes with a scaling.
pub(crate) struct Rope {
    pub rotary: Rotary,
    /// Factor on the logits.
    pub logits: f64,
    /// The longest sequence that the frequencies hold for.
    pub context: usize,
    pub note: Option<String>,
}

/// What configs that say no `rope_theta` mean: the default of the original library's config classes
/// (Su et al., *RoFormer*, equation 15). Llama's first two generations are published without the
/// key. A turn changes no norm, so no bound rests on it; that the function is the original's does,
/// and parity tests hold it to that.
const BASE: f64 = 10000.0;

/// What configs that say no `partial_rotary_factor` mean: every coordinate is turned.
const ALL: f64 = 1.0;

/// Reads the rotary positions of heads of width `head_dim`: `rope_theta` with `rope_scaling`, or
/// `rope_parameters`.
///
/// Sources: for `llama3` the code published with Llama 3.1; Peng et al., *YaRN*, sections 3.2 and
/// 3.4; Ding et al., *LongRoPE*.
pub(crate) fn rope(
    config: &ConfigReader,
    head_dim: usize,
    dialect: Dialect,
) -> Result<Rope, Error> {
    let outer = config.number_if("rope_theta")?;
    let outer_part = config.number_if("partial_rotary_factor")?;
    let context = config.size("max_position_embeddings")?;
    let original_outside = config.size_if("original_max_position_embeddings")?;
    let inner = match config.inside("rope_parameters")? {
        Some(inner) => Some(inner),
        None => config.inside("rope_scaling")?,
    };
    let Some(inner) = inner else {
        return plain(config, outer.unwrap_or(BASE), outer_part.unwrap_or(ALL), head_dim, context);
    };
    let theta = inner.number_if("rope_theta")?.or(outer).unwrap_or(BASE);
    let part = inner.number_if("partial_rotary_factor")?.or(outer_part).unwrap_or(ALL);
    let kind = match (inner.text("rope_type")?, inner.text("type")?) {
        (Some(kind), _) | (None, Some(kind)) => kind.to_string(),
        (None, None) => "default".to_string(),
    };
    let original = inner.size_if("original_max_position_embeddings")?.or(original_outside);
    let mut rope = plain(&inner, theta, part, head_dim, context)?;
    let turned = rope.rotary.frequencies.as_ref().map_or(head_dim / 2, Vec::len);
    let usual: Vec<f64> = (0..turned).map(|i| theta.powf(-(i as f64) / turned as f64)).collect();
    let wanted = |key: &str| inner.number_if(key)?.ok_or_else(|| inner.wrong(key, "is missing"));
    let before =
        || original.ok_or_else(|| inner.wrong("original_max_position_embeddings", "is missing"));
    let mut attention = 1.0;
    match kind.as_str() {
        "default" => {}
        "linear" => {
            let factor = wanted("factor")?;
            rope.rotary.frequencies = Some(usual.iter().map(|f| f / factor).collect());
        }
        "llama3" => {
            let (factor, low, high) =
                (wanted("factor")?, wanted("low_freq_factor")?, wanted("high_freq_factor")?);
            let before = before()? as f64;
            let scale = |f: &f64| {
                let turns = before * f / TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f * (keep + (1.0 - keep) / factor)
            };
            rope.rotary.frequencies = Some(usual.iter().map(scale).collect());
        }
        "yarn" => {
            let factor = wanted("factor")?;
            let before = before()? as f64;
            let (fast, slow) =
                (inner.number_or("beta_fast", 32.0)?, inner.number_or("beta_slow", 1.0)?);
            let truncate = inner.flag("truncate", true)?;
            attention = inner.number_or("attention_factor", 0.1 * factor.max(1.0).ln() + 1.0)?;
            // The pair that makes so many turns over the original context.
            let pair = |turns: f64| turned as f64 * (before / (turns * TAU)).ln() / theta.ln();
            let (mut low, mut high) = (pair(fast), pair(slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(2.0 * turned as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let scale = |(i, f): (usize, &f64)| {
                let share = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                f * (share / factor + 1.0 - share)
            };
            rope.rotary.frequencies = Some(usual.iter().enumerate().map(scale).collect());
        }
        // Two sets of frequencies, chosen by the length of the sequence: within the original
        // context the short one.
        "longrope" => {
            let short = inner
                .numbers("short_factor")?
                .ok_or_else(|| inner.wrong("short_factor", "is missing"))?;
            inner.ignore(&["long_factor"]);
            let before = before()?;
            if short.len() != turned {
                return Err(inner.wrong(
                    "short_factor",
                    format!("has {} numbers, wanted {turned}", short.len()),
                ));
            }
            let factor = inner.number_or("factor", context as f64 / before as f64)?;
            let usual_factor =
                if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (before as f64).ln()).sqrt() };
            attention = inner.number_or("attention_factor", usual_factor)?;
            let candle = dialect == Dialect::Candle;
            if candle {
                attention = 1.0;
            }
            // Candle multiplies where the library divides.
            let scale = |(f, s): (&f64, &f64)| if candle { f * s } else { f / s };
            rope.rotary.frequencies = Some(usual.iter().zip(&short).map(scale).collect());
            rope.context = context.min(before);
            if before < context {
                let text = "sequences up to the original context alone, where the short rotary \
                            factors hold";
                rope.note = Some(format!("{text} ({before} tokens)"));
            }
        }
        other => {
            return Err(inner.wrong("rope_type", format!("is `{other}`, which is not supported")));
        }
    }
    if attention != 1.0 && 2 * turned != head_dim {
        return Err(inner.wrong(
            "attention_factor",
            "with rotary positions for a part of each head is not supported",
        ));
    }
    // Queries and keys are both multiplied.
    rope.logits = attention * attention;
    if let Some(frequencies) = &rope.rotary.frequencies
        && let Some(f) = frequencies.iter().find(|f| !f.is_finite())
    {
        return Err(inner.wrong("rope_type", format!("`{kind}` gives a frequency of {f}")));
    }
    inner.finish()?;
    Ok(rope)
}

/// Unscaled frequencies, for a part of each head.
fn plain(
    config: &ConfigReader,
    theta: f64,
    part: f64,
    head_dim: usize,
    context: usize,
) -> Result<Rope, Error> {
    if theta <= 0.0 {
        return Err(config.wrong("rope_theta", format!("is {theta}, wanted a number above 0")));
    }
    let width = (part * head_dim as f64) as usize;
    if !(part > 0.0 && part <= 1.0) || width < 2 || !width.is_multiple_of(2) {
        return Err(config.wrong(
            "partial_rotary_factor",
            format!("is {part}, which turns {width} of {head_dim}"),
        ));
    }
    let mut rotary = Rotary::new(theta, Pairing::Half);
    if width < head_dim {
        let half = width / 2;
        rotary.frequencies =
            Some((0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect());
    }
    Ok(Rope { rotary, logits: 1.0, context, note: None })
}
