//! No constraint: weights are left as they are, and nothing is guaranteed.

use super::super::rule::{Apply, Rule};

pub(super) static RULE: Rule = Rule {
    key: "none",
    name: "no constraint",
    capped: false,
    constants: &[],
    check: |_| Ok(()),
    aim: |_, _, _| None,
    promise: |_, _, _| None,
    apply: Apply::Nothing,
    work: |_, _, _| Some(0.0),
};
