use std::collections::HashMap;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use candle_core::{D, DType, Device, Tensor};
use clap::Args;
use lipschitz_certify::Error;
use lipschitz_certify::bound::{Format, WeightNorms};
use lipschitz_certify::certificate::{self, Formula};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::terminal::{self, JsonOutput, Kind, ranges};
use lipschitz_certify::upper::Upper;
use lipschitz_certify::{executed, outln, probe};
use lipschitz_data::{for_model, starts};
use lipschitz_nn::checkpoint::save_tensors;
use lipschitz_nn::graph::Input;
use lipschitz_nn::norm::rms_to_rms;
use lipschitz_nn::{Model, random};
use serde::Serialize;

use super::effort::{Effort, spinner};
use super::executed::Executed;

/// Search for the steepest pair of inputs, and compare it with the certified constant.
#[derive(Args)]
pub(super) struct ProbeCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// Real inputs: a text file or a directory of token shards; a folder of images by class, the
    /// directory of MNIST or CIFAR, or a file of tensors [default: random tokens or pixels].
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Seconds to search.
    #[arg(long, default_value_t = 30.0, value_name = "S",
        value_parser = ranges::number(0.0, 1e7))]
    seconds: f64,
    /// The domain: ℓ2 radius per token (or of the whole input) [default: the natural domain].
    #[arg(long)]
    radius: Option<f64>,
    /// Write the pair to this file, as tensors `a` and `b`. `certify run` reads either of them,
    /// renamed to the kind of input.
    #[arg(short, long, value_name = "FILE.safetensors")]
    output: Option<PathBuf>,
    /// In place of a pair, search for the input at which the program that computes in this type is farthest
    /// from the function of the certificate, beside what is proven of it.
    #[arg(long, value_name = "TYPE", num_args = 0..=1, default_missing_value = "f32",
        conflicts_with_all = ["effort"])]
    executed: Option<Executed>,
    #[command(flatten)]
    effort: Effort,
    #[command(flatten)]
    json: JsonOutput,
}

/// The result of a search for the worst execution.
#[derive(Serialize)]
struct ExecutedResult {
    /// The ℓ2 norm of a token of the difference.
    found: f64,
    proven: Upper,
    /// proven / found; null if nothing is found.
    ratio: Option<f64>,
    passes: usize,
}

/// The result. Each constant is from ℓ2 to ℓ2 norm and from RMS to RMS norm.
#[derive(Serialize)]
struct ProbeResult {
    /// What is certain, with rounding allowed for; where nothing is, as computed.
    found_l2: f64,
    certified_l2: Upper,
    found_rms: f64,
    certified_rms: Upper,
    /// certified / found; null if nothing is found.
    ratio: Option<f64>,
    /// What is certain, with rounding allowed for; 0 where rounding may be all of it.
    at_least_l2: f64,
    /// That of the pair as computed, rounding and all.
    computed_l2: f64,
}

/// A number with six decimals, not above it.
fn down(x: f64) -> String {
    let plain = |x: f64| x == 0.0 || (1e-3..1e6).contains(&x);
    let print = |x: f64| if plain(x) { format!("{x:.6}") } else { format!("{x:.6e}") };
    let text = print(x);
    if text.parse::<f64>().is_ok_and(|shown| shown <= x) {
        return text;
    }
    print(if plain(x) { x - 1e-6 } else { x * (1.0 - 1e-6) })
}

impl ProbeCommand {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(match self.executed {
            Some(_) => &["found", "proven", "passes"],
            None => &["found_l2", "certified_l2"],
        })?;
        self.output
            .iter()
            .try_for_each(|path| terminal::ready(path, Kind::Tensors(&["a", "b"])))?;
        terminal::distinct(&[("--output", self.output.as_deref()), ("--json", self.json.path())])?;
        if !(self.seconds.is_finite() && (0.0..=1e9).contains(&self.seconds)) {
            bail!("--seconds {}: must be a number of 0 or above", self.seconds)
        }
        super::check_radius(self.radius)?;
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let inputs = match &self.data {
            Some(path) => starts(&model, &*for_model(path, &meta)?)?,
            None => made_up(&model)?,
        };
        let certificate =
            certificate::certify(&model, Method::Proven, Formula::Sound, self.radius)?;
        if let Some(executed) = self.executed {
            let radius = certificate.domain.radius.to_f64();
            return self.execution(&model, &inputs, radius, executed.format());
        }
        let bar = spinner();
        let certificate = self.effort.tighten(certificate, &model, &bar)?;
        bar.finish_and_clear();
        let radius = certificate.domain.radius.to_f64();
        let budget = Duration::from_secs_f64(self.seconds);
        let loud = terminal::loud();
        let found = probe::probe(&model, &inputs, radius, budget, &mut |sensitivity| {
            if loud {
                let _ = write!(std::io::stderr(), "\rfound so far: {sensitivity:.6}  ℓ2 → ℓ2");
            }
        })?;
        if loud {
            let _ = writeln!(std::io::stderr());
        }
        if let Some(path) = &self.output {
            let (a, b) = found.pair.clone();
            let said =
                HashMap::from([("sensitivity_l2".to_string(), format!("{:e}", found.sensitivity))]);
            save_tensors(terminal::target(path), [("a", a), ("b", b)].into_iter(), Some(said))?;
        }
        let (l2, rms) = (certificate.l2, certificate.rms);
        let value = found.value(l2);
        let ratio = Some(l2.div_up(value).to_f64()).filter(|ratio| ratio.is_finite());
        let inputs = match model.graph().input() {
            Input::Tokens { .. } => found.pair.0.dim(D::Minus1)?,
            _ => found.pair.0.elem_count(),
        };
        let outputs = model.graph().outputs();
        let found_rms = value * rms_to_rms(outputs, inputs) * (1.0 - 1e-15);
        // A forward pass is rounded; the certificate is about real arithmetic.
        if Upper::from_f64(found.at_least) > l2 {
            bail!(Error::Violated(format!(
                "found a sensitivity of at least {} above the certified {l2}: a defect of the \
                 certificate, please report it",
                found.at_least
            )))
        }
        let report = ProbeResult {
            found_l2: value,
            certified_l2: l2,
            found_rms,
            certified_rms: rms,
            ratio,
            at_least_l2: found.at_least,
            computed_l2: found.sensitivity,
        };
        if self.json.write(|| serde_json::to_string_pretty(&report))? {
            return Ok(());
        }
        outln!("found {} ≤ true ≤ certified {l2}  ℓ2 → ℓ2", down(value));
        outln!("found {} ≤ true ≤ certified {rms}  RMS → RMS", down(found_rms));
        if let Some(ratio) = ratio {
            outln!("certified / found: {}", Upper::from_f64(ratio));
        }
        if found.at_least == 0.0 {
            outln!(
                "found is as computed, {:.6}: under a bound so steep, nothing proves how much of it \
                 is rounding",
                found.sensitivity
            );
        }
        Ok(())
    }
}

impl ProbeCommand {
    fn execution(&self, model: &Model, inputs: &Tensor, radius: f64, format: Format) -> Result<()> {
        let norms = WeightNorms::new(model, Method::Proven, &|_| {});
        let budget = Duration::from_secs_f64(self.seconds);
        let worst = executed::search(model, &norms, inputs, radius, format, budget)?;
        if let Some(path) = &self.output {
            save_tensors(terminal::target(path), [("a", worst.input)].into_iter(), None)?;
        }
        let ratio = Some(worst.proven.div_up(worst.found).to_f64()).filter(|r| r.is_finite());
        let (found, proven, passes) = (worst.found, worst.proven, worst.passes);
        let report = ExecutedResult { found, proven, ratio, passes };
        if self.json.write(|| serde_json::to_string_pretty(&report))? {
            return Ok(());
        }
        let name = format.dtype.as_str();
        outln!("{name}: found {} ≤ worst error ≤ proven {proven}  ℓ2 of an output", down(found));
        outln!("{passes} passes compared with f64");
        if let Some(ratio) = ratio {
            outln!("proven / found: {}", Upper::from_f64(ratio));
        }
        Ok(())
    }
}

/// Inputs if there are no real ones: random tokens, or noise.
fn made_up(model: &Model) -> Result<Tensor> {
    const COUNT: usize = 8;
    let mut rng = random::keyed(0, "probe", 0);
    let mut unit = |shape: &[usize]| {
        let values = (0..shape.iter().product())
            .map(|_| random::below(&mut rng, 1 << 20) as f64 / f64::from(1 << 20));
        Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu)
    };
    Ok(match model.graph().input() {
        Input::Tokens { context, .. } => {
            let Some(vocabulary) = model.graph().vocabulary() else {
                bail!("the network has no embedding")
            };
            let ids =
                (unit(&[COUNT, context.min(32)])? * vocabulary as f64)?.to_dtype(DType::U32)?;
            model.embed(&ids)?
        }
        Input::Pixels { channels, height, width } => unit(&[COUNT, channels, height, width])?,
        Input::Vector { dim } => (unit(&[COUNT, dim])? - 0.5)?,
    })
}

#[cfg(test)]
mod tests {
    use super::down;

    #[test]
    fn what_is_found_is_rounded_down() {
        for x in [0.0, 1.0, 1.9999999, 1.5e-5, 0.0012345678, 999_999.999_999_9, 9.1470341e39, 2e6] {
            let shown: f64 = down(x).parse().unwrap();
            assert!(shown <= x && shown >= x * (1.0 - 2e-3), "{x}: {shown}");
        }
        assert_eq!((down(2.0), down(1.59e-5)), ("2.000000".into(), "1.590000e-5".into()));
    }
}
