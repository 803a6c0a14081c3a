//! Names of runs: what varies over the sweep, in words that a file system takes, and a digest of
//! everything.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sha2::{Digest, Sha256};
use toml::Value;

use super::changes::{Changes, flatten};
use super::{SweepRun, content};
use crate::Error;
use crate::config::Config;

/// Characters of the readable part of a directory's name, at most.
const MAX_READABLE: usize = 120;

/// Named runs for points and their configs; of those with the same config, the first.
pub(super) fn runs(points: &[Changes], configs: Vec<Config>) -> Result<Vec<SweepRun>, Error> {
    let leaves: Vec<BTreeMap<String, String>> = points.iter().map(leaves).collect();
    let keys: BTreeSet<&String> = leaves.iter().flat_map(BTreeMap::keys).collect();
    let varies = |key: &&String| leaves.iter().any(|l| l.get(*key) != leaves[0].get(*key));
    let varied: Vec<&String> = keys.into_iter().filter(varies).collect();
    let (mut out, mut seen) = (Vec::new(), HashSet::new());
    for (own, config) in leaves.iter().zip(configs) {
        let content = content(&config)?;
        if !seen.insert(content.clone()) {
            continue;
        }
        let parts: Vec<String> =
            varied.iter().filter_map(|key| Some(part(key, own.get(*key)?, &varied))).collect();
        let digest: String =
            Sha256::digest(content).iter().take(5).map(|byte| format!("{byte:02x}")).collect();
        let readable: String = parts.join("-").chars().map(plain).take(MAX_READABLE).collect();
        let (name, label) = match parts.is_empty() {
            true => (format!("run-{digest}"), "run".into()),
            false => (format!("{readable}-{digest}"), parts.join(", ")),
        };
        out.push(SweepRun { name, label, config });
    }
    Ok(out)
}

/// A point in words, for messages.
pub(super) fn describe(point: &Changes) -> String {
    let parts: Vec<String> =
        leaves(point).iter().map(|(key, value)| part(key, value, &[])).collect();
    parts.join(", ")
}

/// Every single value that a point sets, by its path.
fn leaves(point: &Changes) -> BTreeMap<String, String> {
    let table = point.iter().cloned().collect();
    flatten(table, &|_| false).into_iter().map(|(key, value)| (key, text(&value))).collect()
}

/// `sigma_max=4`; a kind by its name alone; the section as well where another section has a key of
/// this name.
fn part(key: &str, value: &str, all: &[&String]) -> String {
    let (section, last) = key.rsplit_once('.').unwrap_or(("", key));
    if ["kind", "method", "preset"].contains(&last) {
        return value.to_string();
    }
    let alone = all.iter().filter(|other| other.rsplit('.').next() == Some(last)).count() < 2;
    let name =
        if alone || section.is_empty() { last.to_string() } else { format!("{section}.{last}") };
    format!("{name}={value}")
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join("x"),
        // 2 and 2.0 are the same number.
        Value::Float(x) => x.to_string(),
        other => other.to_string(),
    }
}

fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() || "._=-+".contains(c) { c } else { '_' }
}
