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

/// How a family's configs say what their rotary positions are.
#[derive(Clone, Copy)]
pub(crate) struct Keys {
    /// The option with the base.
    pub theta: &'static str,
    /// The option with the share of each head's coordinates that is turned, and what it is where
    /// the config does not say; none where the family turns all of them and reads no share.
    pub share: Option<(&'static str, f64)>,
    pub pairing: Pairing,
}

impl Keys {
    /// Those of most families: all of each head.
    pub(crate) const DEFAULT: Self =
        Self { theta: "rope_theta", share: None, pairing: Pairing::Half };
    /// A share of each head, this one where the config does not say.
    pub(crate) const fn of_share(usual: f64) -> Self {
        Self { share: Some(("partial_rotary_factor", usual)), ..Self::DEFAULT }
    }
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

/// Reads the rotary positions of so many layers of heads of width `head_dim`: `rope_theta` with `rope_scaling`, or
/// `rope_parameters`.
pub(crate) fn rope(
    config: &ConfigReader,
    (layers, head_dim): (usize, usize),
    keys: Keys,
    dialect: Dialect,
) -> Result<Rope, Error> {
    // Every layer has a table of them.
    config.check_layers("head_dim", layers, head_dim)?;
    let theta = config.number_or(keys.theta, config.theta("global"))?;
    // Some families have names of their own, and do not read the usual ones at this place.
    if keys.theta != Keys::DEFAULT.theta {
        config.assume(Keys::DEFAULT.theta, &theta.into())?;
    }
    let share = match keys.share {
        None => {
            config.assume("partial_rotary_factor", &1.0.into())?;
            1.0
        }
        Some((key, usual)) => config.number_or(key, usual)?,
    };
    if keys.share.is_some_and(|(key, _)| key != "partial_rotary_factor") {
        config.assume("partial_rotary_factor", &share.into())?;
    }
    let original = match config.names("original_max_position_embeddings") {
        true => Some(config.size("original_max_position_embeddings")?),
        false => config.size_if("original_max_position_embeddings")?,
    };
    let plain = Plain { theta, share, read_share: keys.share.is_some(), head_dim, original };
    scaled(config, scaling(config)?, plain, keys.pairing, dialect)
}

/// The rotary positions of the layers that slide and of those that do not, from
/// `rope_parameters` by the type of a layer, or from the older options.
pub(crate) fn by_layer_type(
    config: &ConfigReader,
    (layers, head_dim): (usize, usize),
    dialect: Dialect,
) -> Result<[Rope; 2], Error> {
    config.check_layers("head_dim", layers, head_dim)?;
    config.assume("partial_rotary_factor", &1.0.into())?;
    config.assume("original_max_position_embeddings", &serde_json::Value::Null)?;
    let of = |theta: &str, kind: &str, inner: Option<ConfigReader>| {
        let theta = config.number_or(theta, config.theta(kind))?;
        // The library looks for it outside of the two.
        if let Some(inner) = &inner {
            inner.assume("truncate", &true.into())?;
        }
        let plain = Plain { theta, share: 1.0, read_share: false, head_dim, original: None };
        scaled(config, inner, plain, Pairing::Half, dialect)
    };
    let (mut full, mut sliding) = (config.inside("rope_scaling")?, None);
    // The former name of the kind is not read here.
    if let Some(old) = full.as_ref().filter(|old| !old.names("rope_type")) {
        old.assume("type", &"default".into())?;
    }
    if let Some(both) = config.inside("rope_parameters")? {
        if full.is_some() {
            return Err(
                config.wrong("rope_scaling", "is there beside `rope_parameters`; remove one")
            );
        }
        let kind = |key: &str| match (both.names(key), both.inside(key)?) {
            (true, None) => Err(both.wrong(key, "is null")),
            (_, kind) => Ok(kind),
        };
        (full, sliding) = (kind("full_attention")?, kind("sliding_attention")?);
        both.finish(&[])?;
    }
    let sliding = of("rope_local_base_freq", "local", sliding)?;
    Ok([sliding, of("rope_theta", "global", full)?])
}

/// Rotary positions before they are scaled.
struct Plain {
    theta: f64,
    share: f64,
    /// Whether the scaling may say another share.
    read_share: bool,
    head_dim: usize,
    /// The original context, where the config says it outside of the scaling.
    original: Option<usize>,
}

/// Rotary positions with this scaling.
///
/// Sources: for `llama3` the code published with Llama 3.1; Peng et al., *YaRN*, sections 3.2 and
/// 3.4; Ding et al., *LongRoPE*.
fn scaled(
    config: &ConfigReader,
    inner: Option<ConfigReader>,
    Plain { mut theta, mut share, read_share, head_dim, original }: Plain,
    pairing: Pairing,
    dialect: Dialect,
) -> Result<Rope, Error> {
    let context = config.size("max_position_embeddings")?;
    let Some(inner) = inner else {
        return plain(config, theta, share, head_dim, context, pairing);
    };
    theta = inner.number_or("rope_theta", theta)?;
    if read_share {
        share = inner.number_or("partial_rotary_factor", share)?;
    } else {
        inner.assume("partial_rotary_factor", &1.0.into())?;
    }
    let named = |key: &str| if inner.names(key) { inner.text(key).map(Some) } else { Ok(None) };
    let kind = match (named("rope_type")?, named("type")?) {
        // The name of the same in releases of one family.
        (Some("yarn"), _) | (None, Some("yarn")) if config.is_class("phi3") => {
            "longrope".to_string()
        }
        (Some(kind), _) | (None, Some(kind)) => kind.to_string(),
        (None, None) => "default".to_string(),
    };
    let original = match original {
        Some(outside) => outside,
        None => inner.size_or("original_max_position_embeddings", context)?,
    };
    inner.ignore(&["original_max_position_embeddings"]);
    let mut rope = plain(&inner, theta, share, head_dim, context, pairing)?;
    let turned = rope.rotary.frequencies.as_ref().map_or(head_dim / 2, Vec::len);
    let usual: Vec<f64> = (0..turned).map(|i| theta.powf(-(i as f64) / turned as f64)).collect();
    let mut attention = 1.0;
    if config.is_class("phi3") && !matches!(kind.as_str(), "default" | "longrope") {
        return Err(inner.unsupported("rope_type", format!("`{kind}`")));
    }
    match kind.as_str() {
        "default" => {}
        // The base grows with what is longer than the context, and nothing is.
        "dynamic" => {
            inner.number("factor")?;
            if 2 * turned != head_dim {
                let what = "is `dynamic`, with positions for a part of each head, which is not \
                            supported";
                return Err(inner.wrong("rope_type", what));
            }
            if turned < 2 {
                let what = "is `dynamic`, with one pair of coordinates that turn, where the \
                            library divides by 0";
                return Err(inner.wrong("rope_type", what));
            }
        }
        "linear" => {
            let factor = inner.number("factor")?;
            rope.rotary.frequencies = Some(usual.iter().map(|f| f / factor).collect());
        }
        "llama3" => rope.rotary.frequencies = Some(llama3(&inner, &usual, original as f64)?),
        "yarn" => {
            let (frequencies, factor) = yarn(&inner, &usual, theta, original as f64)?;
            (rope.rotary.frequencies, attention) = (Some(frequencies), factor);
        }
        "longrope" => attention = longrope(&inner, &usual, original, dialect, &mut rope)?,
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

/// Frequencies that turn seldom within the original context are divided, those that turn often
/// stay, with a ramp between.
fn llama3(inner: &ConfigReader, usual: &[f64], original: f64) -> Result<Vec<f64>, Error> {
    let factor = inner.number("factor")?;
    let (low, high) = (inner.number("low_freq_factor")?, inner.number("high_freq_factor")?);
    if !(0.0 < low && low < high) {
        let what = format!("is {high}, with `low_freq_factor` {low}; wanted 0 < low < high");
        return Err(inner.wrong("high_freq_factor", what));
    }
    let scale = |f: &f64| {
        let turns = original * f / TAU;
        let keep = ((turns - low) / (high - low)).clamp(0.0, 1.0);
        f * (keep + (1.0 - keep) / factor)
    };
    Ok(usual.iter().map(scale).collect())
}

/// The same with a ramp over the pairs, and the factor on queries and keys.
fn yarn(
    inner: &ConfigReader,
    usual: &[f64],
    theta: f64,
    original: f64,
) -> Result<(Vec<f64>, f64), Error> {
    let factor = inner.number("factor")?;
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
    let attention = inner.number_if("attention_factor")?.unwrap_or(usual_factor);
    // The pair that makes so many turns over the original context.
    let turned = usual.len() as f64;
    let pair = |turns: f64| turned * (original / (turns * TAU)).ln() / theta.ln();
    let (mut low, mut high) = (pair(fast), pair(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(2.0 * turned - 1.0));
    if low == high {
        high += 0.001;
    }
    let scale = |(i, f): (usize, &f64)| {
        let share = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        f * (share / factor + 1.0 - share)
    };
    Ok((usual.iter().enumerate().map(scale).collect(), attention))
}

/// Two sets of frequencies, chosen by the length of the sequence: within the original context the
/// short one, which is taken. Gives the factor on queries and keys.
fn longrope(
    inner: &ConfigReader,
    usual: &[f64],
    original: usize,
    dialect: Dialect,
    rope: &mut Rope,
) -> Result<f64, Error> {
    let (turned, context) = (usual.len(), rope.context);
    let short =
        inner.numbers("short_factor")?.ok_or_else(|| inner.wrong("short_factor", "is missing"))?;
    if inner.numbers("long_factor")?.map(|long| long.len()) != Some(turned) {
        return Err(inner.wrong("long_factor", format!("is no list of {turned} numbers")));
    }
    if short.len() != turned {
        let what = format!("has {} numbers, wanted {turned}", short.len());
        return Err(inner.wrong("short_factor", what));
    }
    let factor = inner.number_if("factor")?.unwrap_or(context as f64 / original as f64);
    let usual_factor =
        if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
    let attention = inner.number_if("attention_factor")?.unwrap_or(usual_factor);
    let candle = dialect == Dialect::Candle;
    // Candle multiplies where the library divides.
    let scale = |(f, s): (&f64, &f64)| if candle { f * s } else { f / s };
    rope.rotary.frequencies = Some(usual.iter().zip(&short).map(scale).collect());
    rope.context = context.min(original);
    if original < context {
        let text =
            "sequences up to the original context alone, where the short rotary factors hold";
        rope.note = Some(format!("{text} ({original} tokens)"));
    }
    Ok(if candle { 1.0 } else { attention })
}

/// Unscaled frequencies, for a part of each head.
fn plain(
    config: &ConfigReader,
    theta: f64,
    part: f64,
    head_dim: usize,
    context: usize,
    pairing: Pairing,
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
    let mut rotary = Rotary::new(theta, pairing);
    if width < head_dim {
        let half = width / 2;
        rotary.frequencies =
            Some((0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect());
    }
    Ok(Rope { rotary, logits: 1.0, context, note: None })
}
