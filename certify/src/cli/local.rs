use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_core::Device;
use clap::{Args, ValueEnum};
use comfy_table::Table;
use lipschitz_certify::local::{self, Allowed, Distance, Radius, Settings, Survey, Trials};
use lipschitz_certify::outln;
use lipschitz_certify::robust;
use lipschitz_certify::terminal::tables::{self, fitted};
use lipschitz_certify::terminal::{self, JsonOutput, Kind, ranges, shown};
use lipschitz_certify::upper::down;
use lipschitz_data::Batches;
use lipschitz_data::codec::Codec;
use lipschitz_nn::Model;
use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::graph::Input;

use super::decisions::Decisions;
use super::substitutions;

/// For each input: how far it may move before the decision can change, proven around that input.
///
/// The global constant holds everywhere; around one input the network's own slopes are known, so that
/// radii can be larger. The proof is of the function in real arithmetic, with all rounding of the program
/// that computes it here accounted for. A decision is the class of an image or of a text, or the next
/// token after a window of text; the embedding vectors of a text move.
#[derive(Args)]
pub(super) struct LocalCommand {
    /// A run directory, a checkpoint, or a third-party model.
    model: PathBuf,
    /// The inputs: a text file, of which an encoder or a classifier reads each line on its own, a directory of
    /// token shards, or a data set of images.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// How a change is measured [default: token for text, l2 for others].
    #[arg(long, value_enum)]
    norm: Option<By>,
    /// Bound every output at these radii too, such as 0.01,36/255; into --json.
    #[arg(long, visible_alias = "eps", value_delimiter = ',', value_parser = super::robust::radius)]
    radius: Vec<f64>,
    /// Number of inputs, from the first of the held-out split.
    #[arg(long, default_value_t = 20, value_parser = ranges::count(1, 1 << 40))]
    limit: usize,
    /// Steps per attack, which shows how much larger radii could be; 0 leaves it out.
    #[arg(long, default_value_t = 20, value_parser = ranges::count(0, 1_000_000))]
    steps: usize,
    /// In place of radii: each token may become any of its so many nearest ones.
    #[arg(long, value_name = "COUNT", value_parser = ranges::count(1, 1 << 20), group = "replaced",
        conflicts_with_all = ["norm", "radius"])]
    nearest: Option<usize>,
    /// In place of radii: each token may become any of those that this JSON object lists for it, such
    /// as {" good": [" great", " fine"]}.
    #[arg(long, value_name = "FILE.json", group = "replaced", conflicts_with_all = ["norm", "radius", "nearest"])]
    synonyms: Option<PathBuf>,
    /// The most tokens that are replaced in one input.
    #[arg(long, default_value_t = 4, value_parser = ranges::count(1, 1 << 20), requires = "replaced")]
    positions: usize,
    /// Sequences of replaced tokens that are run for each input and number of tokens.
    #[arg(long, default_value_t = 2000, value_parser = ranges::count(0, 1 << 40), requires = "replaced")]
    trials: usize,
    /// Write a line for each input to this file.
    #[arg(long, value_name = "FILE.csv")]
    csv: Option<PathBuf>,
    #[command(flatten)]
    json: JsonOutput,
    #[command(flatten)]
    search: super::effort::Effort,
}

/// How a change is measured.
#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// ℓ2 norm of the change of each token: all of them may move.
    Token,
    /// ℓ2 norm of the change of all tokens together, of an image or a vector.
    L2,
    /// The largest change of an element.
    Linf,
}

impl From<By> for Distance {
    fn from(by: By) -> Self {
        match by {
            By::Token => Self::Token,
            By::L2 => Self::L2,
            By::Linf => Self::Linf,
        }
    }
}

impl LocalCommand {
    pub(super) fn run(self) -> Result<()> {
        self.json.ready(&["weights_sha256", "inputs"])?;
        self.csv.iter().try_for_each(|path| terminal::ready(path, Kind::Csv("input,class")))?;
        terminal::distinct(&[("--csv", self.csv.as_deref()), ("--json", self.json.path())])?;
        let (model, meta) = lipschitz_certify::load(&self.model, &Device::Cpu)?;
        let decisions = Decisions::of(&model, &meta, &self.model, &self.data, self.limit)?;
        let tokens = matches!(model.graph().input(), Input::Tokens { .. });
        if let Some(allowed) = self.allowed(&meta)? {
            return self.substitutions(&model, &meta, decisions.batches()?, &allowed);
        }
        let usual = if tokens { By::Token } else { By::L2 };
        let attack = (self.steps > 0).then_some(robust::Effort { steps: self.steps, restarts: 2 });
        let settings = Settings {
            distance: self.norm.unwrap_or(usual).into(),
            limit: self.limit,
            radii: self.radius.clone(),
            attack,
            search: self.search.steps(model.graph()),
        };
        let watch = |input: usize| self.tell(input);
        let mut survey = local::survey(&model, decisions.batches()?, &settings, &watch)
            .map_err(|error| super::about(&self.model, error))?;
        told();
        survey.label = super::robust::label(&self.model);
        if let Some(path) = &self.csv {
            terminal::write(path, csv(&survey).as_bytes())?;
        }
        if !self.json.write(|| serde_json::to_string_pretty(&survey))? {
            print(&survey, &meta.classes);
        }
        Ok(())
    }

    fn tell(&self, input: usize) {
        if terminal::loud() {
            let _ = write!(std::io::stderr(), "\rinput {} of {} …    ", input + 1, self.limit);
        }
    }

    /// What tokens may become, if that is asked about.
    fn allowed(&self, meta: &Meta) -> Result<Option<Allowed>> {
        let reads = matches!(meta.graph.input(), Input::Tokens { .. });
        if (self.nearest.is_some() || self.synonyms.is_some()) && !reads {
            bail!("{}: reads no tokens, so that none can be replaced", self.model.display())
        }
        Ok(match (&self.nearest, &self.synonyms) {
            (Some(count), _) => Some(Allowed::Nearest(*count)),
            (None, Some(path)) => Some(substitutions::listed(path, &self.model, meta)?),
            (None, None) => None,
        })
    }

    fn substitutions(
        &self,
        model: &Model,
        meta: &Meta,
        batches: Batches<'_>,
        allowed: &Allowed,
    ) -> Result<()> {
        let codec = meta.tokenizer.as_ref().map(Codec::new).transpose()?;
        let trials = Trials {
            limit: self.limit,
            most: self.positions,
            trials: self.trials,
            search: self.search.steps(model.graph()),
            fixed: codec.as_ref().map_or_else(Vec::new, Codec::special),
        };
        let watch = |input: usize| self.tell(input);
        let mut found = local::substitutions(model, batches, allowed, &trials, &watch)
            .map_err(|error| super::about(&self.model, error))?;
        told();
        found.label = super::robust::label(&self.model);
        let word = |id: u32| {
            let text = codec.as_ref().and_then(|codec| codec.decode(&[id]).ok());
            text.map_or_else(|| id.to_string(), |text| format!("{text:?}"))
        };
        if let Some(path) = &self.csv {
            terminal::write(path, substitutions::csv(&found).as_bytes())?;
        }
        if !self.json.write(|| serde_json::to_string_pretty(&found))? {
            substitutions::print(&found, &word);
        }
        Ok(())
    }
}

/// Ends the line that tells of inputs.
fn told() {
    if terminal::loud() {
        let _ = writeln!(std::io::stderr());
    }
}

/// A number for a table that a program reads: the largest stands for none that is larger.
pub(super) fn number(x: f64) -> String {
    if x < f64::MAX { x.to_string() } else { "inf".into() }
}

/// A line for each input.
fn csv(survey: &Survey) -> String {
    let mut out =
        String::from("input,class,correct,margin,certified,global,tangent,attacked,seconds\n");
    for row in &survey.inputs {
        let Radius {
            input, class, correct, margin, radius, global, tangent, broken, seconds, ..
        } = row;
        let correct = correct.map_or(String::new(), |c| c.to_string());
        let [margin, radius, global, tangent] =
            [margin, radius, global, tangent].map(|x| number(*x));
        let broken = broken.map_or(String::new(), |b| b.to_string());
        out += &format!(
            "{input},{class},{correct},{margin},{radius},{global},{tangent},{broken},{seconds:.4}\n"
        );
    }
    out
}

/// Rounded up to a few digits.
fn up(x: f64) -> String {
    match x < 1e-6 {
        true => format!("{:.3e}", x * (1.0 + 5.1e-4)),
        false => format!("{:.6}", (x * 1e6 * (1.0 + 4.0 * f64::EPSILON)).ceil() / 1e6),
    }
}

fn print(survey: &Survey, classes: &[String]) {
    outln!("{}", fitted(table(survey, classes)));
    let of = match survey.distance {
        Distance::Token => "ℓ2 norm of the change of each token",
        Distance::L2 => "ℓ2 norm of the change",
        Distance::Linf => "largest change of an element",
    };
    outln!(
        "radius: {of}; certified ≤ true ≤ attacked; tangent: no proof, the first-order estimate"
    );
    let median = |f: &dyn Fn(&Radius) -> f64| -> f64 {
        let mut all: Vec<f64> = survey.inputs.iter().map(f).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(0.0)
    };
    let [own, global, tangent, seconds]: [f64; 4] = [
        median(&|r| r.radius),
        median(&|r| r.global),
        median(&|r| r.tangent),
        median(&|r| r.seconds),
    ];
    let times = if global > 0.0 { format!(", {:.1} times", own / global) } else { String::new() };
    outln!(
        "median over {} inputs: certified {}, by the global bound {}{times}; tangent {}; \
         {seconds:.2} s an input",
        survey.inputs.len(),
        down(own),
        down(global),
        down(tangent),
    );
}

fn table(survey: &Survey, classes: &[String]) -> Table {
    let header = ["input", "class", "margin", "certified", "global", "tangent", "attacked"];
    let mut table = tables::table(&header, 0..header.len());
    for row in &survey.inputs {
        let mark = match row.correct {
            Some(false) => " (wrong)",
            _ => "",
        };
        table.add_row([
            row.input.to_string(),
            match classes.get(row.class) {
                Some(name) => format!("{} {}{mark}", row.class, shown(name)),
                None => format!("{}{mark}", row.class),
            },
            down(row.margin),
            down(row.radius),
            down(row.global),
            down(row.tangent),
            row.broken.map_or("–".into(), up),
        ]);
    }
    table
}
