//! Whether a config fits its data, before anything is written.

use lipschitz_certify::plan;
use lipschitz_data::{DataSet, check_outputs};
use lipschitz_nn::Graph;
use lipschitz_opt::Recipe;

use crate::config::{By, Config, Goal};
use crate::loss::Loss;
use crate::{Error, estimate, logits, target, teacher};

/// What a config means for its data.
pub struct Checked {
    /// The network.
    pub graph: Graph,
    /// Optimizers and constraint, the cap solved from the target if there is one.
    pub recipe: Recipe,
}

/// Finds what is wrong with a config, without writing anything.
///
/// # Errors
/// One line: sizes that do not fit, a target that no cap reaches, a constant out of range.
pub fn check(config: &Config, data: &dyn DataSet) -> Result<Checked, Error> {
    let graph = config.graph_for(data)?;
    data.check(graph.input())?;
    check_outputs(&graph, data)?;
    Loss::new(config.loss, data.predicts()).check(&graph)?;
    let mut recipe = config.recipe();
    recipe.check_for(&graph)?;
    let teachers = teacher::check(config, &graph, Some(data))?;
    estimate::check(config, &graph, &teachers)?;
    match config.goal() {
        Some(Goal { target, by: By::Caps, .. }) => recipe = plan::solve(&graph, &recipe, target)?,
        Some(Goal { by: By::Certificate, .. }) if target::head(&graph).is_none() => {
            return Err(Error::Config(
                "lipschitz.by is \"certificate\", which needs a network that ends in a linear map; \
                 this one does not"
                    .into(),
            ));
        }
        _ => {}
    }
    if config.max_logit.is_some() && !logits::has_attention(&graph) {
        return Err(Error::Config("max_logit is set, and the model has no attention".into()));
    }
    recipe.constraint.check_complete()?;
    let decay = config.constraint.decay;
    recipe.check_rates(&graph, config.train.learning_rate).map_err(|error| {
        match recipe.constraint.decay == decay {
            true => Error::from(error),
            false => Error::Config(format!(
                "{error}; it was solved from the target, so a larger target or a smaller learning rate"
            )),
        }
    })?;
    Ok(Checked { graph, recipe })
}
