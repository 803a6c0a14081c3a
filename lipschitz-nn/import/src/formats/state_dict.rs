//! Which of the dictionaries in a file of `torch.save` holds the weights. Training scripts save
//! them beside the optimizer's state, counters and options, under names of their own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::pickle::{Id, Machine, Object};
use super::torch::{self, Tensor};
use crate::Undecided;

/// What a file is wrong about: a text, or a decision that is not taken.
pub(super) type Wrong = Box<dyn std::error::Error + Send + Sync>;

/// The dictionary of the weights.
pub(super) struct StateDict {
    /// Where it is, if not at the outside: its keys with dots between.
    pub entry: Option<String>,
    /// Names and tensors, in order.
    pub tensors: Vec<(String, Tensor)>,
    /// Plain data beside it.
    pub sidecar: BTreeMap<String, Value>,
}

/// How deep dictionaries of weights are looked for, as in `{"ema": {"module": {…}}}`.
const DEPTH: usize = 3;

/// How much plain data is kept, in bytes.
const ROOM: usize = 1 << 20;

/// Whether what lies under this key is never the weights, though it may hold tensors of their names.
fn of_training(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    matches!(key.as_str(), "opt" | "optim" | "amp")
        || ["optimizer", "opt_state", "optim_state", "scheduler", "scaler", "rng_state"]
            .iter()
            .any(|part| key.contains(part))
}

/// Whether a number of this name says how far a training is. The whole name, since part of one may be
/// anything: a `step_size` or a `logit_scaler` is a part of what a model computes.
fn is_progress(name: &str) -> bool {
    matches!(name, "epoch" | "epochs" | "global_step" | "iter_num" | "best_val_loss")
}

/// Whether a value can be a weight: a tensor with axes, of floats or of what is not read.
fn is_weight(machine: &Machine, id: Id) -> bool {
    match torch::tensor(machine, id) {
        Ok(Some(tensor)) => {
            !tensor.shape.is_empty() && tensor.dtype.is_none_or(|dtype| dtype.is_float())
        }
        Ok(None) => false,
        Err(_) => true,
    }
}

/// Dictionaries of weights.
struct Search<'a, 'b> {
    machine: &'a Machine<'b>,
    seen: BTreeSet<Id>,
    found: Vec<(String, Id)>,
}

impl Search<'_, '_> {
    fn within(&mut self, pairs: &[(Id, Id)], path: &str, depth: usize) {
        for (key, value) in pairs {
            let (Object::Text(key), Object::Dict(inner)) =
                (&self.machine.memory[*key], &self.machine.memory[*value])
            else {
                continue;
            };
            if of_training(key) || !self.seen.insert(*value) {
                continue;
            }
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            let named = |(key, value): &(Id, Id)| {
                matches!(self.machine.memory[*key], Object::Text(_))
                    && is_weight(self.machine, *value)
            };
            if inner.iter().any(named) {
                self.found.push((path, *value));
            } else if depth > 1 {
                self.within(inner, &path, depth - 1);
            }
        }
    }
}

/// Some names, for a message.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    match names.len() {
        n if n > SHOWN => format!("{shown} and {} more", n - SHOWN),
        _ => shown,
    }
}

/// The dictionary of weights in what a pickle left: the one called `entry`, or the only one.
pub(super) fn choose(machine: &Machine, top: Id, entry: Option<&str>) -> Result<StateDict, Wrong> {
    let Object::Dict(pairs) = &machine.memory[top] else {
        let what = machine.describe(top);
        return Err(match &machine.memory[top] {
            Object::Call(..) if torch::tensor(machine, top).is_ok_and(|t| t.is_none()) => format!(
                "holds {what}, no dictionary of tensors; nothing was run; load it where its code \
                 is and save its state_dict()"
            ),
            Object::Call(..) => "holds a single tensor, no dictionary of tensors".into(),
            _ => format!("holds {what}, no dictionary of tensors"),
        }
        .into());
    };
    let mut search = Search { machine, seen: BTreeSet::new(), found: Vec::new() };
    search.within(pairs, "", DEPTH);
    let found = search.found;
    let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
    let outside = pairs.iter().any(|(_, value)| is_weight(machine, *value));
    let chosen = match (entry, found.as_slice()) {
        (Some(entry), _) => match found.iter().find(|(name, _)| name == entry) {
            Some((_, id)) => Some((entry.to_string(), *id)),
            None if names.is_empty() => {
                return Err(format!("has no entry `{entry}` with tensors").into());
            }
            None => {
                let there = list(&names);
                return Err(format!("has no entry `{entry}` with tensors, but {there}").into());
            }
        },
        (None, []) if outside => None,
        (None, []) => {
            let keys = pairs.iter().map(|(key, value)| {
                let key = machine.said(*key).unwrap_or("?").to_string();
                format!("`{key}`, {}", machine.describe(*value))
            });
            let keys: Vec<String> = keys.take(8).collect();
            let keys = if keys.is_empty() { "nothing".into() } else { keys.join("; ") };
            return Err(format!("holds no dictionary of tensors; it holds {keys}").into());
        }
        (None, [(name, id)]) if !outside => Some((name.clone(), *id)),
        (None, _) => {
            let beside = if outside { ", and tensors beside them" } else { "" };
            let what = format!("holds several sets of tensors: {}{beside}", list(&names));
            return Err(Undecided::Entries(what).into());
        }
    };
    let (entry, inner) = match chosen {
        Some((name, id)) => (Some(name), id),
        None => (None, top),
    };
    let sidecar = match &entry {
        Some(_) => sidecar(machine, pairs, &found),
        None => BTreeMap::new(),
    };
    Ok(StateDict { entry, tensors: tensors(machine, inner)?, sidecar })
}

/// The tensors of a dictionary.
fn tensors(machine: &Machine, id: Id) -> Result<Vec<(String, Tensor)>, Wrong> {
    let Object::Dict(pairs) = &machine.memory[id] else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    for (key, value) in pairs {
        let Object::Text(name) = &machine.memory[*key] else {
            return Err("its dictionary of tensors has a key that is no text".into());
        };
        match torch::tensor(machine, *value) {
            Ok(Some(tensor)) => out.push((name.clone(), tensor)),
            Ok(None) => match &machine.memory[*value] {
                Object::None => {}
                Object::Number(_) | Object::Float(_) | Object::Flag(_) if is_progress(name) => {}
                _ => {
                    let what = machine.describe(*value);
                    return Err(format!(
                        "`{name}` is {what}, no tensor; nothing was run; save the state_dict alone"
                    )
                    .into());
                }
            },
            Err(what) => return Err(format!("`{name}` {what}").into()),
        }
    }
    Ok(out)
}

/// What lies beside the weights, as far as it is plain data.
fn sidecar(
    machine: &Machine,
    pairs: &[(Id, Id)],
    weights: &[(String, Id)],
) -> BTreeMap<String, Value> {
    let weights: BTreeSet<Id> = weights.iter().map(|(_, id)| *id).collect();
    let mut room = ROOM;
    let mut out = BTreeMap::new();
    for (key, value) in pairs {
        let Object::Text(key) = &machine.memory[*key] else { continue };
        if of_training(key)
            || weights.contains(value)
            || !matches!(torch::tensor(machine, *value), Ok(None))
        {
            continue;
        }
        if let Some(value) = machine.plain(*value, &mut room) {
            out.insert(key.clone(), value);
        }
    }
    out
}
