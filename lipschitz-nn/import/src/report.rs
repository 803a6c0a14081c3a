//! What became of each tensor of a third-party model.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use crate::Undecided;
use crate::formats::files::Files;
use crate::mapping::Mapping;

/// A tensor whose shape is not the one that the config implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misshapen {
    /// Its name in the file.
    pub name: String,
    /// Its shape there.
    pub found: Vec<usize>,
    /// The shape that the config implies.
    pub wanted: Vec<usize>,
}

/// What became of each tensor. Names are those of the file; `applied` maps weights of the graph to
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Each weight of the graph, and the tensors that it is made of.
    pub applied: BTreeMap<String, Vec<String>>,
    /// Tensors that the config asks for and no file holds.
    pub missing: Vec<String>,
    /// Tensors that nothing is known about.
    pub unused: Vec<String>,
    /// Tensors that the function is known not to need, and why.
    pub aside: BTreeMap<String, String>,
    /// Tensors of the wrong shape.
    pub misshapen: Vec<Misshapen>,
}

impl ImportReport {
    pub(crate) fn new(plan: &Mapping, files: &Files) -> Self {
        let mut report = Self::default();
        let mut wanted = BTreeMap::new();
        for (name, take) in &plan.weights {
            let sources = take.sources();
            report.applied.insert(
                name.clone(),
                sources.iter().map(|(name, _)| (*name).to_string()).collect(),
            );
            wanted.extend(sources);
        }
        for (name, shape) in &wanted {
            match files.get(name) {
                None => report.missing.push((*name).to_string()),
                Some(info) if info.shape != *shape => {
                    let (found, wanted) = (info.shape.clone(), shape.to_vec());
                    report.misshapen.push(Misshapen { name: (*name).to_string(), found, wanted });
                }
                Some(info) if !info.dtype.is_some_and(|d| d.is_float()) => {
                    let kind = &info.kind;
                    report
                        .missing
                        .push(format!("{name} (there is one of {kind}, which is not read)"));
                }
                Some(_) => {}
            }
        }
        for name in files.names().filter(|name| !wanted.contains_key(name)) {
            let by_end =
                || plan.aside.iter().find(|(end, _)| matches(name, end)).map(|(_, why)| why);
            match plan.exactly.get(name).or_else(by_end) {
                Some(why) => drop(report.aside.insert(name.to_string(), (*why).to_string())),
                None => report.unused.push(name.to_string()),
            }
        }
        report
    }

    /// Why the import cannot go on, on one line.
    pub(crate) fn failure(&self, allow_unused: bool) -> Option<Box<dyn Error + Send + Sync>> {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("lacks {}", list(&self.missing)));
        }
        if !self.misshapen.is_empty() {
            let shapes: Vec<String> = self
                .misshapen
                .iter()
                .map(|m| format!("{} (is {:?}, the config wants {:?})", m.name, m.found, m.wanted))
                .collect();
            parts.push(format!("has tensors of the wrong shape: {}", list(&shapes)));
        }
        if !self.unused.is_empty() && !allow_unused {
            let unused = list(&self.unused);
            let what = format!("has tensors that nothing is known about: {unused}");
            // Leaving them out does not mend what else is wrong.
            if parts.is_empty() {
                return Some(Undecided::UnknownTensors(what).into());
            }
            parts.push(what);
        }
        (!parts.is_empty()).then(|| parts.join("; ").into())
    }

    /// A line per reason, for the origin.
    pub(crate) fn set_aside(&self) -> Vec<String> {
        let reasons: BTreeSet<&String> = self.aside.values().collect();
        let line = |why: &&String| {
            let names: Vec<String> =
                self.aside.iter().filter(|(_, w)| w == why).map(|(n, _)| n.clone()).collect();
            format!("set aside, {why}: {}", list(&names))
        };
        reasons.iter().map(line).collect()
    }
}

/// Whether a tensor is meant by the end of its name, or, where that ends in a star, by its start.
fn matches(name: &str, end: &str) -> bool {
    match end.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == end || name.ends_with(&format!(".{end}")),
    }
}

/// The first few names, and how many more.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}
