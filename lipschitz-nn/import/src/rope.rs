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

/// Where a config says which share of each head's coordinates is turned.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Share {
    /// The family turns all of them, and its class reads no share.
    All,
    /// The config says, or else it is this one.
    Option(f64),
}

/// The scaling that a config asks for: under the older name where both are there, as the library
/// takes it.
pub(crate) fn scaling(config: &ConfigReader) -> Result<Option<ConfigReader>, Error> {
    let (new, old) = (config.inside("rope_parameters")?, config.inside("rope_scaling")?);
    match (new, old) {
        (Some(new), Some(old)) if !old.is_empty() && !old.same(&new) => {
            Err(config.wrong("rope_scaling", "differs from `rope_parameters`; remove one"))
        }
        (new, Some(old)) if !old.is_empty() || new.is_none() => Ok(Some(old)),
        (new, _) => Ok(new),
    }
}

/// Reads the rotary positions of heads of width `head_dim`: `rope_theta` with `rope_scaling`, or
/// `rope_parameters`.
///
/// Sources: for `llama3` the code published with Llama 3.1; Peng et al., *YaRN*, sections 3.2 and
/// 3.4; Ding et al., *LongRoPE*.
pub(crate) fn rope(
    config: &ConfigReader,
    head_dim: usize,
    share: Share,
    dialect: Dialect,
) -> Result<Rope, Error> {
    let mut theta = config.number_or("rope_theta", config.theta("global"))?;
    let part = match share {
        Share::All => {
            config.assume("partial_rotary_factor", &1.0.into())?;
            1.0
        }
        Share::Option(usual) => config.number_or("partial_rotary_factor", usual)?,
    };
    let context = config.size("max_position_embeddings")?;
    let original_outside = match config.names("original_max_position_embeddings") {
        true => Some(config.size("original_max_position_embeddings")?),
        false => config.size_if("original_max_position_embeddings")?,
    };
    let Some(inner) = scaling(config)? else {
        return plain(config, theta, part, head_dim, context);
    };
    theta = inner.number_or("rope_theta", theta)?;
    let part = match share {
        Share::All => {
            inner.assume("partial_rotary_factor", &1.0.into())?;
            part
        }
        Share::Option(_) => inner.number_or("partial_rotary_factor", part)?,
    };
    for key in ["rope_type", "type"].into_iter().filter(|key| inner.names(key)) {
        inner.text(key)?;
    }
    let kind = match (inner.text_if("rope_type")?, inner.text_if("type")?) {
        // The name of the same in releases of one family.
        (Some("yarn"), _) | (None, Some("yarn")) if config.is_class("phi3") => {
            "longrope".to_string()
        }
        (Some(kind), _) | (None, Some(kind)) => kind.to_string(),
        (None, None) => "default".to_string(),
    };
    let original = match original_outside {
        Some(outside) => outside,
        None => inner.size_or("original_max_position_embeddings", context)?,
    };
    inner.ignore(&["original_max_position_embeddings"]);
    let mut rope = plain(&inner, theta, part, head_dim, context)?;
    let turned = rope.rotary.frequencies.as_ref().map_or(head_dim / 2, Vec::len);
    let usual: Vec<f64> = (0..turned).map(|i| theta.powf(-(i as f64) / turned as f64)).collect();
    let mut attention = 1.0;
    if config.is_class("phi3") && !matches!(kind.as_str(), "default" | "longrope") {
        return Err(inner.unsupported("rope_type", format!("`{kind}`")));
    }
    match kind.as_str() {
        "default" => {}
        // The base grows with what is longer than the context, and nothing is.
        "dynamic" => drop(inner.number("factor")?),
        "linear" => {
            let factor = inner.number("factor")?;
            rope.rotary.frequencies = Some(usual.iter().map(|f| f / factor).collect());
        }
        "llama3" => {
            let (factor, low, high) = (
                inner.number("factor")?,
                inner.number("low_freq_factor")?,
                inner.number("high_freq_factor")?,
            );
            if !(0.0 < low && low < high) {
                let what = format!("is {high}, wanted one above `low_freq_factor`, {low}, above 0");
                return Err(inner.wrong("high_freq_factor", what));
            }
            let before = original as f64;
            let scale = |f: &f64| {
                let turns = before * f / TAU;
                let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                f * (keep + (1.0 - keep) / factor)
            };
            rope.rotary.frequencies = Some(usual.iter().map(scale).collect());
        }
        "yarn" => {
            let factor = inner.number("factor")?;
            let before = original as f64;
            let or = |key: &str, usual: f64| {
                Ok::<_, Error>(inner.number_if(key)?.filter(|x| *x != 0.0).unwrap_or(usual))
            };
            let (fast, slow) = (or("beta_fast", 32.0)?, or("beta_slow", 1.0)?);
            if fast <= 0.0 || slow <= 0.0 || theta == 1.0 {
                let what = "wants `beta_fast` and `beta_slow` above 0 and a base other than 1";
                return Err(inner.wrong("rope_type", what));
            }
            let truncate = inner.flag_or("truncate", true)?;
            let grown = |by: f64| if factor <= 1.0 { 1.0 } else { 0.1 * by * factor.ln() + 1.0 };
            let (scale, all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
            let usual_factor =
                if scale != 0.0 && all != 0.0 { grown(scale) / grown(all) } else { grown(1.0) };
            attention = inner.number_if("attention_factor")?.unwrap_or(usual_factor);
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
            let long = inner.numbers("long_factor")?.map(|long| long.len());
            if long != Some(turned) {
                let what = format!("is no list of {turned} numbers");
                return Err(inner.wrong("long_factor", what));
            }
            let before = original;
            if short.len() != turned {
                return Err(inner.wrong(
                    "short_factor",
                    format!("has {} numbers, wanted {turned}", short.len()),
                ));
            }
            let factor = inner.number_if("factor")?.unwrap_or(context as f64 / before as f64);
            let usual_factor =
                if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (before as f64).ln()).sqrt() };
            attention = inner.number_if("attention_factor")?.unwrap_or(usual_factor);
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
    inner.finish(&[])?;
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
