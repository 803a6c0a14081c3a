//! What a file that this program wrote holds, by its keys.

use serde_json::Value;

/// Results as JSON, and keys that each has and no other.
const KINDS: [(&str, [&str; 3]); 6] = [
    ("a certificate of `certify bound`", ["weights_sha256", "graph", "formula"]),
    ("a result of `certify local`", ["weights_sha256", "inputs", "distance"]),
    ("a result of `certify range`", ["weights_sha256", "number", "tensors"]),
    ("a result of `certify robust`", ["label", "unit", "available"]),
    ("a result of `train eval`", ["loss", "accuracy", "predictions"]),
    ("the summary of a run", ["label", "method", "steps"]),
];

/// What a text is in place of a result of this command, if it is another one, or nothing at all.
pub(crate) fn instead_of(command: &str, text: &str) -> Option<&'static str> {
    if text.trim().is_empty() {
        return Some("empty");
    }
    let document: Value = serde_json::from_str(text).ok()?;
    let is = |keys: &[&str]| keys.iter().all(|key| document.get(key).is_some());
    let kind = KINDS.iter().find(|(_, keys)| is(keys)).map(|(kind, _)| *kind);
    kind.filter(|kind| !kind.contains(command))
}
