//! A target that the certificate meets: the head has what the rest of the network leaves.
//!
//! A network that ends in a linear map W has the constant `‖W‖` times that of all else. So once its
//! constant c is proven, W is scaled down where c is above the target, and may grow to `target/c`
//! times its own norm. That holds of every proof: by norms, and of the smaller one by ellipsoids as
//! well, where a search for it is asked for.

use lipschitz_certify::certificate::{Formula, certify};
use lipschitz_certify::ellipsoid::usual_steps;
use lipschitz_certify::spectral::{Matrix, Method, spectral_norm};
use lipschitz_certify::upper::Upper;
use lipschitz_nn::graph::join;
use lipschitz_nn::{Graph, Model};
use lipschitz_opt::scale;

use crate::config::{By, Config, Goal};
use crate::step::Training;
use crate::{Error, logits};

/// Steps between proofs by norms.
const EVERY: u64 = 25;

/// Steps between proofs by ellipsoids as well, which take seconds.
const SEARCH_EVERY: u64 = 100;

/// How often a head is scaled after the last step until what is proven of it is under the target: a
/// search after it may end a little elsewhere.
const ROUNDS: i32 = 5;

/// What rounding the weights in f32 may add to the constant.
const ROUNDING: f64 = 2e-7;

/// The constant, as a share of the target, from which a head is scaled up to it at the end.
const NEARLY: f64 = 0.99;

/// The least factor on a head: f32 holds nothing much below it.
const LEAST: f64 = 1e-30;

/// The weight of the linear map that a network ends in, but for scales.
pub(crate) fn head(graph: &Graph) -> Option<String> {
    Some(join(&graph.nodes()[graph.head()?].name, "weight"))
}

/// What is fitted after this many steps: the head, and whether for the last time, which is another fit;
/// queries and keys. Not a question of what is logged, so that logging changes nothing.
#[derive(PartialEq)]
pub(crate) struct Due {
    head: bool,
    last: bool,
    logits: bool,
}

impl Due {
    pub(crate) fn after(config: &Config, done: u64) -> Self {
        let head = fits_head(config, done);
        let last = head && done == config.train.steps;
        Self { head, last, logits: caps_logits(config, done) }
    }

    pub(crate) fn is_any(&self) -> bool {
        self.head || self.logits
    }
}

fn fits_head(config: &Config, done: u64) -> bool {
    let goal = config.goal().filter(|goal| goal.by == By::Certificate);
    let every = |goal: Goal| if goal.effort > 0 { SEARCH_EVERY } else { EVERY };
    goal.is_some_and(|goal| is_one_of(every(goal), config, done))
}

/// Whether logits are under their cap after this many steps.
pub(crate) fn caps_logits(config: &Config, done: u64) -> bool {
    config.max_logit.is_some() && is_one_of(EVERY, config, done)
}

/// The first step, the last one, and every so many.
fn is_one_of(every: u64, config: &Config, done: u64) -> bool {
    done == 1 || done.is_multiple_of(every) || done == config.train.steps
}

/// Whether the target is known to hold by norms after this many steps: between proofs the rest of a
/// network may have grown, and where ellipsoids count norms may say more.
pub(crate) fn holds(config: &Config, done: u64) -> bool {
    let holds = |goal: Goal| goal.by == By::Caps || goal.effort == 0 && fits_head(config, done);
    config.goal().is_none_or(holds)
}

/// Steps of the search for a proof by ellipsoids at the end of a run.
pub(crate) fn last_search(config: &Config, graph: &Graph) -> usize {
    usual_steps(graph).max(config.goal().map_or(0, |goal| goal.effort))
}

/// Brings everything under what is proven for it. Smaller logits may leave more to the head.
///
/// # Errors
/// A network whose constant is not known; candle's own.
pub(crate) fn fit(config: &Config, training: &mut Training, done: u64) -> Result<(), Error> {
    if caps_logits(config, done) {
        logits::fit(config, training)?;
    }
    if fits_head(config, done) {
        fit_head(config, training, done)?;
    }
    // Each process has proven the same, up to the rounding of its processor.
    training.share()
}

/// Proves the constant, brings the head under what it leaves of the target, and sets its cap to
/// that. At the end, a head that uses nearly all of it uses all of it.
///
/// # Errors
/// A network whose constant is not known; candle's own.
fn fit_head(config: &Config, training: &mut Training, done: u64) -> Result<(), Error> {
    let Some(goal) = config.goal().filter(|goal| goal.by == By::Certificate) else {
        return Ok(());
    };
    let graph = training.model.graph();
    let last = done == config.train.steps;
    let search = match (goal.effort, last) {
        (0, _) => 0,
        (effort, false) => effort,
        (_, true) => last_search(config, graph),
    };
    let proven = |model: &Model| -> Result<Upper, Error> {
        let by_norms = certify(model, Method::Proven, Formula::Sound, None)?;
        Ok(by_norms.tighten(model, search, &mut |_, _| {})?.rms)
    };
    let Some(name) = head(graph) else { return Ok(()) };
    let Some(at) = training.variables.iter().position(|v| v.parameter.name == name) else {
        return Ok(());
    };
    let head = training.variables[at].clone();
    // Caps of rows or of heads stay where they are, so that nothing may grow above them.
    let grows = training
        .constraint
        .promise(&head.parameter)
        .is_none_or(|cap| cap.heads.is_none() && cap.row.is_none());
    let mut leaves = 1.0;
    for round in 0..if last && search > 0 { ROUNDS } else { 1 } {
        let constant = proven(&training.model.detached())?;
        // The head is zero, or something else is wrong, which the log's own checks tell.
        if constant == Upper::ZERO || !constant.is_finite() {
            return Ok(());
        }
        leaves = goal.target / constant.to_f64();
        let uses_it = !last || round > 0 || leaves > 1.0 / NEARLY || !grows;
        if leaves >= 1.0 && uses_it {
            break;
        }
        let factor = leaves * (1.0 - ROUNDING * 10f64.powi(round));
        if factor < LEAST {
            return Err(Error::Config(format!(
                "lipschitz.target is {}, and the proven constant is {constant} after {done} steps: a head \
                 so small would be zero; take fewer or no norms, a larger ε in them, or smaller caps",
                goal.target
            )));
        }
        head.var.set(&(head.var.as_tensor().detach() * factor)?)?;
        leaves /= factor;
    }
    let w = Matrix::from_tensor(&name, head.var.as_tensor())?;
    let norm = scale(&head.parameter, None) * spectral_norm(&w, Method::Proven).upper.to_f64();
    training.constraint.limit(&head.parameter, 1.0);
    let cap = training.constraint.promise(&head.parameter);
    if let Some(cap) = cap.filter(|cap| cap.heads.is_none() && cap.row.is_none()) {
        training.constraint.limit(&head.parameter, leaves * norm / cap.sigma_max);
    }
    Ok(())
}
