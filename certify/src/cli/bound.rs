use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use comfy_table::Table;
use lipschitz_certify::bound::savings::{self, Tightening};
use lipschitz_certify::bound::{NodeBound, WeightNorms, WeightRow, walk};
use lipschitz_certify::certificate::{self, Certificate, Formula};
use lipschitz_certify::executed::{self, Proof};
use lipschitz_certify::outln;
use lipschitz_certify::source::{Rounded, Rounding, Source};
use lipschitz_certify::spectral::Method;
use lipschitz_certify::terminal::tables::{fitted, is_shown, table};
use lipschitz_certify::terminal::{self, JsonOutput, shown};
use lipschitz_certify::upper::Upper;
use lipschitz_nn::checkpoint::{Dialect, Origin};

use super::effort::{Effort, spinner};
use super::executed::Executed;

/// Prove a Lipschitz bound.
#[derive(Args)]
pub(super) struct BoundCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    #[command(flatten)]
    json: JsonOutput,
    /// How spectral norms are bounded.
    #[arg(long, value_enum, default_value_t = Norms::Proven)]
    norms: Norms,
    /// Which formula to use.
    #[arg(long, value_enum, default_value_t = FormulaName::Sound)]
    formula: FormulaName,
    /// Round the weights to this type first: certifies the network that inference in it runs.
    #[arg(long, value_enum, value_name = "TYPE")]
    weights: Option<Weights>,
    /// The domain: ℓ2 radius per token (or of the whole input) [default: the natural domain].
    #[arg(long)]
    radius: Option<f64>,
    #[command(flatten)]
    effort: Effort,
    /// Bound as well how far the program that computes in this type may be from the function that the
    /// certificate is about, over the whole domain.
    #[arg(long, value_enum, value_name = "TYPE", conflicts_with = "quiet")]
    executed: Option<Executed>,
    /// Print what each tightening saves.
    #[arg(long, conflicts_with_all = ["quiet", "formula"])]
    savings: bool,
    /// On a terminal, print the norm of every weight too; a pipe or a file always has them.
    #[arg(long, conflicts_with = "quiet")]
    details: bool,
    /// Print the bound alone.
    #[arg(long, short)]
    quiet: bool,
}

/// A type that weights are rounded to. For those of 8 bits each weight has a factor, the largest power
/// of two that keeps it within the ends of the type.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Weights {
    /// 8 bits of precision.
    Bf16,
    /// 11 bits of precision.
    F16,
    /// 4 bits of precision, with a factor.
    E4m3,
    /// 3 bits of precision, with a factor.
    E5m2,
    /// Whole numbers up to 127, with a factor.
    Int8,
}

impl From<Weights> for Rounding {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Bf16 => Self::Bf16,
            Weights::F16 => Self::F16,
            Weights::E4m3 => Self::E4m3,
            Weights::E5m2 => Self::E5m2,
            Weights::Int8 => Self::Int8,
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Norms {
    /// Lanczos proposes, Cholesky proves.
    Proven,
    /// Gram iteration, with a rounding margin.
    Gram,
    /// Power iteration: an estimate, not a bound.
    Power,
    /// Frobenius norms: a loose bound.
    Frobenius,
}

#[derive(Clone, Copy, ValueEnum)]
enum FormulaName {
    /// Valid for any number of heads.
    Sound,
    /// The published one: not a bound for more than one head.
    Paper,
}

impl BoundCommand {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(&["weights_sha256", "graph", "formula"])?;
        super::check_radius(self.radius)?;
        if self.savings && self.json.takes_stdout() {
            bail!(
                "--savings prints a table where --json prints the certificate; name a file for it"
            )
        }
        let stored = lipschitz_certify::open(&self.model)?;
        let rounded = self.weights.map(|to| Rounded { source: &stored, to: to.into() });
        let model = rounded.as_ref().map_or(&stored as &dyn Source, |rounded| rounded);
        let method = match self.norms {
            Norms::Proven => Method::Proven,
            Norms::Gram => Method::Gram,
            Norms::Power => Method::Power,
            Norms::Frobenius => Method::Frobenius,
        };
        let formula = match self.formula {
            FormulaName::Sound => Formula::Sound,
            FormulaName::Paper => Formula::Paper,
        };
        let bar = spinner();
        let watch = |name: &str| {
            bar.set_message(shown(name));
            bar.inc(1);
        };
        let certificate = certificate::certify_watched(model, method, formula, self.radius, &watch)
            .map_err(|e| super::about(&self.model, e))?;
        let certificate = self.effort.tighten(certificate, model, &bar)?;
        bar.finish_and_clear();
        if !self.quiet {
            self.effort.tell(&certificate);
        }
        let executed = self.executed.map(|in_type| self.executed(in_type, model, &certificate));
        let executed = executed.transpose()?;
        if self.json.write(|| serde_json::to_string_pretty(&certificate))? {
            if let Some(executed) = executed {
                terminal::note(format_args!("{executed}"));
            }
            return Ok(());
        }
        if self.quiet {
            if !certificate.proven {
                terminal::note(format_args!("warning: NOT PROVEN"));
            }
            outln!("{}", certificate.rms.plain());
        } else if is_shown() {
            show(&certificate, self.details);
        } else {
            print(&certificate);
        }
        if let Some(executed) = executed {
            outln!("{executed}");
        }
        if self.savings {
            outln!("\n{}", fitted(savings(model, method, &certificate, self.radius)?));
        }
        Ok(())
    }
}

impl BoundCommand {
    /// What the program in floating point has to do with the function in real arithmetic.
    fn executed(
        &self,
        in_type: Executed,
        model: &dyn Source,
        certificate: &Certificate,
    ) -> Result<String> {
        let format = in_type.format();
        let name = format.dtype.as_str();
        let domain = certificate.domain.radius;
        let proof =
            executed::prove(model, domain, format).map_err(|e| super::about(&self.model, e))?;
        Ok(match proof {
            Proof::Unbounded => {
                let remedy = if domain.is_finite() { "" } else { "; give a domain by --radius" };
                format!("executed in {name}: nothing is bounded{remedy}")
            }
            Proof::Overflow { values, weights } => format!(
                "executed in {name}: values can reach {values} and weights {weights}, which may overflow, or \
                 their squares may; nothing is bounded"
            ),
            Proof::Within { outputs: off, values } => format!(
                "executed in {name}: each token of the output is within {off} of it in ℓ2 on the domain, for any \
                 order of sums, and two outputs differ by at most L‖x − y‖ + 2 · {off}; no value exceeds {values}"
            ),
        })
    }
}

/// A number with nine decimals, rounded up or down.
fn decimals(x: f64, up: bool) -> String {
    let text = format!("{x:.9}");
    let safe = text.parse::<f64>().is_ok_and(|shown| if up { shown >= x } else { shown <= x });
    if safe { text } else { format!("{:.9}", if up { x + 1e-9 } else { (x - 1e-9).max(0.0) }) }
}

/// One row for each node of the outermost level: how far a change of the input can have grown.
fn gains(c: &Certificate) -> Option<Table> {
    let found = c.ellipsoids.as_ref()?;
    let mut gains = table(&["node", "L so far by norms", "by ellipsoids", "times"], 1..=3);
    for reached in &found.nodes {
        let row = c.nodes.iter().find(|row| row.id == reached.id)?;
        let name = if row.path.is_empty() { row.kind.clone() } else { shown(&row.path) };
        let times = 10f64.powf(row.cumulative.log10() - reached.cumulative.log10());
        let [norms, ellipsoids] = [row.cumulative, reached.cumulative].map(|x| x.to_string());
        gains.add_row([name, norms, ellipsoids, format!("{times:.2}")]);
    }
    Some(gains)
}

/// In a pipe: all of it, the tables first.
fn print(c: &Certificate) {
    outln!("{}\n", nodes(&c.nodes));
    if let Some(gains) = gains(c) {
        outln!("{gains}\n");
    }
    outln!("{}\n", norms(&c.weights));
    theorem(c);
}

/// On a terminal: what is proven, and then where it comes from.
fn show(c: &Certificate, details: bool) {
    theorem(c);
    if let Some(gains) = gains(c) {
        outln!("\n{}", fitted(gains));
    }
    outln!("\n{}", fitted(nodes(&c.nodes)));
    if details {
        outln!("\n{}", fitted(norms(&c.weights)));
    } else {
        outln!("{} norms of weights: --details", c.weights.len());
    }
}

/// One row per norm of a weight.
fn norms(rows: &[WeightRow]) -> Table {
    let mut norms = table(&["norm", "at least", "at most", "method"], 1..=2);
    for row in rows {
        let (lower, upper) = (decimals(row.lower, false), decimals(row.upper.to_f64(), true));
        norms.add_row([shown(&row.name).as_str(), &lower, &upper, &row.method.to_string()]);
    }
    norms
}

/// A change of one part in this many may change an output altogether.
const LARGE: f64 = 1e6;

/// The bound, its domain and its assumptions.
fn theorem(c: &Certificate) {
    let what = if c.proven { "certified" } else { "NOT PROVEN" };
    outln!("L ≤ {}  RMS → RMS    {what}", c.rms);
    outln!("L ≤ {}  ℓ2 → ℓ2", c.l2);
    if let Some(found) = &c.ellipsoids {
        let norms = c.by_norms().map_or_else(String::new, |l| format!("{l} by norms, "));
        outln!("        {norms}{} by ellipsoids, ℓ2 → ℓ2", found.l2);
    }
    outln!(
        "one output moves by at most {} times the RMS norm ({} times the ℓ2 norm) of a change",
        c.logit.rms,
        c.logit.l2
    );
    outln!("the margin of two by at most {} times ({} times)", c.margin.rms, c.margin.l2);
    outln!("domain: {}", c.domain);
    if let Some(diameter) = c.domain.diameter {
        outln!("        two embedding rows are at most {diameter} apart");
    }
    if c.l2 > Upper::from_f64(LARGE) {
        outln!(
            "so large a constant says little about one input: `certify local` proves what holds around it"
        );
    }
    c.origin.iter().for_each(|from| origin(from, |line| outln!("{line}")));
    c.assumptions.iter().for_each(|text| outln!("assumes: {}", shown(text)));
    outln!("weights: sha256 {}", c.weights_sha256);
    c.warnings.iter().for_each(|text| outln!("warning: {}", shown(text)));
}

/// Prints where an imported network comes from.
pub(super) fn origin(origin: &Origin, say: fn(std::fmt::Arguments)) {
    let whose = match (origin.dialect, &origin.library) {
        (Dialect::Candle, _) => ", as candle's model of the family computes it".to_string(),
        (Dialect::Original, Some(library)) => format!(", as {library} computes it"),
        (Dialect::Original, None) => String::new(),
    };
    say(format_args!("imported: {}{}", shown(&origin.family), shown(&whose)));
    origin.notes.iter().for_each(|note| say(format_args!("imported: {}", shown(note))));
    if !origin.unused.is_empty() {
        let unused = shown(&origin.unused.join(", "));
        say(format_args!("imported: left out, unknown: {unused}"));
    }
}

/// One row per tightening.
fn savings(
    source: &dyn Source,
    method: Method,
    c: &Certificate,
    radius: Option<f64>,
) -> Result<Table> {
    let norms = WeightNorms::new(source, method, &|_| {});
    let mut table = table(&["without", "L, RMS → RMS", "times"], 1..=2);
    let radius = radius.map(Upper::from_f64);
    let whole = walk(source.graph(), &norms, radius)?.rms();
    let mut row = |what: &str, l: Upper, than: Upper| {
        let times = 10f64.powf(l.log10() - than.log10());
        table.add_row([what, &l.to_string(), &format!("{times:.4}")]);
    };
    if c.ellipsoids.is_some() {
        row("ellipsoids", whole, c.rms);
    }
    for tightening in Tightening::ALL {
        let l = savings::without(tightening, source.graph(), &norms, radius)?;
        // Norms are compared with norms.
        row(tightening.text(), l, whole);
    }
    Ok(table)
}

/// One row per node.
pub(super) fn nodes(rows: &[NodeBound]) -> Table {
    let mut nodes = table(&["node", "kind", "L", "L so far", "‖x‖₂ ≤", "rule"], 2..=4);
    for row in rows {
        let name = if row.path.is_empty() { "·".to_string() } else { shown(&row.path) };
        let numbers = [row.lipschitz, row.cumulative, row.radius].map(|x| x.to_string());
        let [l, cumulative, radius] = numbers;
        nodes.add_row([name.as_str(), &row.kind, &l, &cumulative, &radius, &row.rule]);
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::decimals;

    #[test]
    fn ends_of_intervals_are_rounded_outwards() {
        assert_eq!(
            (decimals(0.1000000002, true), decimals(0.1000000002, false)),
            ("0.100000001".into(), "0.100000000".into())
        );
        assert_eq!(
            (decimals(4e-10, true), decimals(0.9999999997, false)),
            ("0.000000001".into(), "0.999999999".into())
        );
        assert_eq!(decimals(6e-10, false), "0.000000000");
        assert_eq!(
            (decimals(2.5, true), decimals(2.5, false)),
            ("2.500000000".into(), "2.500000000".into())
        );
    }
}
