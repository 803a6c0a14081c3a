use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_core::Device;
use clap::Args;
use lipschitz_certify::certificate::Certificate;
use lipschitz_certify::ellipsoid;
use lipschitz_certify::local::{self, Survey};
use lipschitz_certify::terminal::{self, shown};
use lipschitz_certify::upper::down;
use lipschitz_certify::{Error, outln, verify};
use lipschitz_nn::strict;

use super::decisions::Decisions;
use crate::results;

/// Prove a certificate again from a checkpoint; exit code 1 if it does not hold or is an estimate.
///
/// Radii around inputs, as `local --json` writes them, are proven again on the same data.
#[derive(Args)]
pub(super) struct VerifyCommand {
    /// The certificate, as written by `bound --json`, or the radii of `local --json`; - reads it from
    /// stdin.
    certificate: PathBuf,
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// The data that radii are about.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
}

impl VerifyCommand {
    pub(super) fn run(self) -> Result<()> {
        let path = &self.certificate;
        let text = terminal::read(path, "a certificate")?;
        let refused = |e: serde_json::Error| {
            let what = match results::instead_of("certify bound", &text) {
                Some(kind) => format!("is {kind}, not a certificate"),
                None => format!("is not a certificate: {e}"),
            };
            lipschitz_nn::Error::file(
                path,
                format!("{what}; write one with `certify bound --json`"),
            )
        };
        let held = |e: serde_json::Error| {
            Error::Violated(format!("{}: the certificate does not hold: {e}", path.display()))
        };
        let document: serde_json::Value = serde_json::from_str(&text).map_err(refused)?;
        if document.get("inputs").is_some() && document.get("distance").is_some() {
            return self.radii(&text, &document);
        }
        if let Some(data) = &self.data {
            bail!(
                "--data {}: {} is a certificate of a whole network, which is about no data; leave it out",
                data.display(),
                path.display()
            )
        }
        let claims = document.get("weights_sha256").is_some() && document.get("rms").is_some();
        let claim: Certificate = serde_json::from_str(&text).map_err(|e| match claims {
            true => anyhow::Error::from(held(e)),
            false => refused(e).into(),
        })?;
        strict::known(&document, &claim).map_err(held)?;
        let model = lipschitz_certify::open(&self.model)?;
        verify::verify(&claim, &model).map_err(|e| match e {
            Error::Violated(_) => anyhow::Error::from(e).context(path.display().to_string()),
            e => super::about(&self.model, e),
        })?;
        let what = if claim.proven { "holds" } else { "is what these weights give" };
        outln!("{}: {what}: L ≤ {}  RMS → RMS", path.display(), claim.rms);
        outln!("domain: {}", claim.domain);
        if let Some(rounding) = claim.rounding {
            outln!("weights: rounded to {}", rounding.name());
        }
        claim.warnings.iter().for_each(|text| outln!("warning: {}", shown(text)));
        if claim.proven {
            return Ok(());
        }
        let what = "states an estimate, NOT a proven bound; make one with `certify bound --json`";
        Err(Error::Violated(format!("{}: {what}", path.display())).into())
    }
    /// Radii around inputs.
    fn radii(&self, text: &str, document: &serde_json::Value) -> Result<()> {
        let path = self.certificate.display();
        let held =
            |e: serde_json::Error| Error::Violated(format!("{path}: the radii do not hold: {e}"));
        let claim: Survey = serde_json::from_str(text).map_err(held)?;
        strict::known(document, &claim).map_err(held)?;
        let Some(data) = &self.data else {
            bail!("{path}: holds radii around inputs; name their data with --data PATH")
        };
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        if claim.search > ellipsoid::usual_steps(model.graph()) {
            let steps = claim.search;
            terminal::note(format_args!(
                "note: a search of {steps} steps is made again, as {path} says; Ctrl-C ends it"
            ));
        }
        // Data that another network reads is no fault of the data.
        let decisions = Decisions::of(&model, &meta, &self.model, data, usize::MAX);
        let decisions = decisions.map_err(|e| match local::about(&model, &claim) {
            Err(other @ Error::Violated(_)) => anyhow::Error::from(other).context(path.to_string()),
            _ => e,
        })?;
        local::verify(&model, decisions.batches()?, &claim, &|_| {}).map_err(|e| match e {
            Error::Violated(_) => anyhow::Error::from(e).context(path.to_string()),
            e => super::about(&self.model, e),
        })?;
        let least = claim.inputs.iter().map(|row| row.radius).fold(f64::INFINITY, f64::min);
        let n = claim.inputs.len();
        outln!("{path}: holds: {n} radii, the smallest {}", down(least));
        outln!("labels, tangents, losses, times and what an attack found are no part of it");
        Ok(())
    }
}
