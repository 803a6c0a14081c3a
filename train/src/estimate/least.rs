//! The memory that a training step takes at least, on the CPU: what any way of computing it has to
//! hold at one time. A run that needs more than there is is refused before anything is written.

use lipschitz_data::memory::Memory;
use lipschitz_nn::Graph;
use lipschitz_nn::graph::Input;

use super::count::{F32, Segment, segments};
use super::{UpdateCost, all_weights, numbers};
use crate::config::Config;
use crate::{Error, ranks, step};

/// What takes most of a step's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mostly {
    /// Weights, their gradients and the optimizer's state.
    Weights,
    /// Activations kept for the gradient.
    Activations,
    /// What is read of the data.
    Batch,
    /// Weights of teachers.
    Teachers,
}

/// Bytes that a training step takes at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Least {
    /// Of weights, old and new, their gradients and the optimizer's state.
    pub weights: f64,
    /// Of activations kept for the gradient, of one part of a process's share of the batch.
    pub activations: f64,
    /// Of the inputs of a process's share of the batch.
    pub batch: f64,
    /// Of the weights of teachers.
    pub teachers: f64,
}

impl Least {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.weights + self.activations + self.batch + self.teachers
    }

    fn mostly(&self) -> Mostly {
        let all = [
            (self.weights, Mostly::Weights),
            (self.activations, Mostly::Activations),
            (self.batch, Mostly::Batch),
            (self.teachers, Mostly::Teachers),
        ];
        all.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or(Mostly::Weights, |(_, what)| what)
    }
}

/// What a step of a run takes at least of each of this many processes.
///
/// Of the weights there are the old ones, too, in a process alone, which logs its first step. The
/// optimizer's state is that which Muon and AdamW keep of every weight; of activations, the
/// results of matmuls with weights, the mixed values of attention, and the logits with their
/// gradient. Inputs are of four bytes an element, and the whole share is there from the start. Teachers have
/// their weights.
///
/// # Errors
/// [`Error::UnevenBatch`] if they cannot share the batch evenly.
pub fn least(
    config: &Config,
    graph: &Graph,
    teachers: &[Graph],
    processes: usize,
) -> Result<Least, Error> {
    let train = &config.train;
    let parameters = graph.parameters();
    let weights: f64 = parameters.iter().map(numbers).sum();
    let state = UpdateCost::new(&config.recipe(), &parameters, processes).least_state;
    let examples = step::share(train.batch_size, processes)?;
    let part = step::part(examples, train.accumulate) as f64;
    let elements = match graph.input() {
        Input::Tokens { context, .. } => context as f64,
        Input::Pixels { channels, height, width } => channels as f64 * height as f64 * width as f64,
        Input::Vector { dim } => dim as f64,
    };
    let segments = segments(graph, graph.input(), train.precision, train.dropout > 0.0, false);
    let sum = |part: fn(&Segment) -> f64| segments.iter().map(part).sum::<f64>();
    let kept = if train.recompute {
        sum(|s| s.input) + segments.iter().map(|s| s.least).fold(0.0, f64::max)
    } else {
        sum(|s| s.least)
    };
    // The weights and their gradients; where a step is logged, the weights before it; and their mean.
    let copies = if processes == 1 { 3.0 } else { 2.0 };
    let copies = if config.averaging.is_some() { copies + 1.0 } else { copies };
    let weights = F32 * (copies * weights + state);
    let (batch, teachers) = (F32 * examples as f64 * elements, F32 * all_weights(teachers));
    Ok(Least { weights, activations: part * kept, batch, teachers })
}

/// Bytes that a forward pass of this many examples takes at least: the logits, and a copy of them
/// that is looked at.
#[must_use]
pub fn forward(graph: &Graph, examples: usize) -> f64 {
    let segments =
        segments(graph, graph.input(), lipschitz_nn::linalg::Precision::F32, false, false);
    let logits = segments.last().map_or(0.0, |last| last.logits);
    let input = segments.iter().map(|s| s.input).fold(0.0, f64::max);
    examples as f64 * input.max(2.0 * logits)
}

/// Whether this machine has the memory that a step takes at least, in as many processes as have
/// been started. On a GPU that shows when the weights are put there.
///
/// # Errors
/// [`Error::TooLarge`] with both figures; [`Error::UnevenBatch`].
pub fn check(config: &Config, graph: &Graph, teachers: &[Graph]) -> Result<(), Error> {
    if config.train.device != "cpu" {
        return Ok(());
    }
    let least = least(config, graph, teachers, ranks::started()?)?;
    match Memory::now() {
        Some(memory) if least.total() > memory.free as f64 => {
            Err(Error::TooLarge { least: least.total(), mostly: least.mostly(), memory })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(settings: &[&str]) -> Config {
        let settings: Vec<String> = settings.iter().map(|s| s.to_string()).collect();
        Config::parse(crate::preset::text("gpt-shakespeare").unwrap(), &settings).unwrap()
    }

    fn of(settings: &[&str]) -> Least {
        let config = config(settings);
        least(&config, &config.graph(30).unwrap(), &[], 1).unwrap()
    }

    #[test]
    fn what_a_step_holds_is_counted() {
        let small = [
            "model.dim=64",
            "model.layers=2",
            "model.heads=2",
            "model.context=32",
            "train.batch_size=6",
        ];
        let with = |more: &[&str]| of(&[&small[..], more].concat());
        let weights = (2 * 12 * 64 * 64 + 2 * 64 * 30) as f64;
        // Queries, keys, values, mixed values and what attention gives; the MLP's four widths and
        // what it gives; embedding; logits and their gradient.
        let one = (32 * (2 * (5 + 5) * 64 + 64 + 2 * 30)) as f64;
        let whole = with(&[]);
        let (activations, batch) = (4.0 * 6.0 * one, (4 * 6 * 32) as f64);
        assert_eq!(whole, Least { weights: 16.0 * weights, activations, batch, teachers: 0.0 });
        // No part has less than an example.
        assert_eq!(with(&["train.accumulate=1000"]).activations, 4.0 * one);
        assert_eq!(with(&["train.accumulate=3"]).activations, whole.activations / 3.0);
        let adam = with(&["optimizer={ kind = \"adamw\" }"]);
        assert_eq!(adam.weights, 20.0 * weights);
        assert!(with(&["train.recompute=true"]).activations < 0.5 * whole.activations);
    }

    /// A teacher that no machine holds is what is named.
    #[test]
    fn teachers_are_held() {
        let (config, own) = (config(&[]), config(&[]).graph(30).unwrap());
        let large = super::tests::config(&["model.dim=65536", "model.heads=16"]).graph(30).unwrap();
        let with = |teachers: &[Graph]| least(&config, &own, teachers, 1).unwrap();
        let numbers: f64 = large.parameters().iter().map(numbers).sum();
        let (alone, taught) = (with(&[]), with(&[large]));
        assert_eq!(taught.total() - alone.total(), 4.0 * numbers);
        assert_eq!((taught.mostly(), alone.teachers), (Mostly::Teachers, 0.0));
    }

    /// In less than a second and without a graph that grows with what is asked for.
    #[test]
    fn what_no_machine_holds_is_refused_at_once() {
        let clock = std::time::Instant::now();
        let cases: [(&[&str], Mostly); 4] = [
            (&["train.batch_size=268435456"], Mostly::Activations),
            (&["model.dim=1048576", "model.heads=1"], Mostly::Weights),
            (&["model.dim=65536", "model.layers=1024", "model.heads=16"], Mostly::Weights),
            (&["model.context=16777216", "train.batch_size=268435456"], Mostly::Activations),
        ];
        for (settings, wanted) in cases {
            let config = config(settings);
            let graph = config.graph(1 << 28).unwrap();
            let least = least(&config, &graph, &[], 1).unwrap();
            assert!(least.total().is_finite() && least.total() > 1e11, "{least:?}");
            assert_eq!(least.mostly(), wanted, "{settings:?}");
            if Memory::now().is_some_and(|memory| (memory.free as f64) < 1e11) {
                let said = check(&config, &graph, &[]).unwrap_err().to_string();
                assert!(said.contains("takes at least") && !said.contains('\n'), "{said}");
            }
        }
        // In parts of one sequence the inputs of all of them remain.
        let parts = of(&["train.batch_size=268435456", "train.accumulate=268435456"]);
        assert_eq!(parts.mostly(), Mostly::Batch, "{parts:?}");
        check(&config(&[]), &config(&[]).graph(65).unwrap(), &[]).unwrap();
        assert!(clock.elapsed().as_secs() < 20, "{:?}", clock.elapsed());
    }
}
