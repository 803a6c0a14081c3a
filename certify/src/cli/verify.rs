use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use lipschitz_certify::certificate::Certificate;
use lipschitz_certify::terminal::{self, shown};
use lipschitz_certify::{Error, outln, verify};
use lipschitz_nn::strict;

/// Prove a certificate again from a checkpoint; exit code 1 if it does not hold or is an estimate.
#[derive(Args)]
pub(super) struct VerifyCommand {
    /// The certificate, as written by `bound --json`; - reads it from stdin.
    certificate: PathBuf,
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
}

impl VerifyCommand {
    pub(super) fn run(self) -> Result<()> {
        let path = &self.certificate;
        let text = terminal::read(path, "a certificate")?;
        let refused = |e: serde_json::Error| {
            lipschitz_nn::Error::file(
                path,
                format!("is not a certificate: {e}; write one with `certify bound --json`"),
            )
        };
        let held = |e: serde_json::Error| {
            Error::Violated(format!("{}: the certificate does not hold: {e}", path.display()))
        };
        let document: serde_json::Value = serde_json::from_str(&text).map_err(refused)?;
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
}
