//! The second proof, by ellipsoids, for whoever shows a constant.

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use lipschitz_certify::certificate::{Certificate, Formula};
use lipschitz_certify::ellipsoid;
use lipschitz_certify::source::Source;
use lipschitz_certify::terminal::{self, ranges};
use lipschitz_nn::Graph;

#[derive(Args)]
pub(super) struct Effort {
    /// Steps of the search for a second proof, by ellipsoids; 0 leaves it out [default: 30 where
    /// that takes a minute or two, 0 for larger networks].
    #[arg(long, value_name = "STEPS", value_parser = ranges::count(0, 100_000))]
    effort: Option<usize>,
}

impl Effort {
    /// Steps of the search.
    pub(super) fn steps(&self, graph: &Graph) -> usize {
        self.effort.unwrap_or_else(|| ellipsoid::usual_steps(graph))
    }

    /// The certificate with a second proof, if there is to be one.
    pub(super) fn tighten(
        &self,
        certificate: Certificate,
        source: &dyn Source,
        bar: &ProgressBar,
    ) -> Result<Certificate> {
        let steps = self.steps(source.graph());
        Ok(certificate.tighten(source, steps, &mut |step, l| {
            bar.set_message(format!("ellipsoids, step {step} of {steps}: about {l} in ℓ2"));
            bar.inc(1);
        })?)
    }

    /// Says that there is a smaller bound to be had, if nobody has asked for it or without it.
    pub(super) fn tell(&self, certificate: &Certificate) {
        let proven = certificate.formula == Formula::Sound && certificate.method.is_bound();
        if self.effort.is_none() && proven && ellipsoid::usual_steps(&certificate.graph) == 0 {
            terminal::note(format_args!(
                "note: by norms alone; for a network of this size ellipsoids take minutes: --effort 20"
            ));
        }
    }
}

/// On a terminal, shows what is being computed.
pub(super) fn spinner() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {elapsed} {pos}: {wide_msg}");
    if !terminal::loud() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    style.map_or(bar.clone(), |style| bar.with_style(style))
}
