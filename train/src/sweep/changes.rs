//! What a run of a sweep changes in the base config.

use toml::{Table, Value};

/// Values for keys of a config, each key as its path.
pub(super) type Changes = Vec<(String, Value)>;

/// A table as paths and values: `a.b = 1` and `"a.b" = 1` are the same. Tables that `whole` accepts
/// are values.
pub(super) fn flatten(table: Table, whole: &dyn Fn(&Table) -> bool) -> Changes {
    let mut out = Changes::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) if !whole(&inner) => {
                let inner = flatten(inner, whole);
                out.extend(inner.into_iter().map(|(rest, value)| (format!("{key}.{rest}"), value)));
            }
            value => out.push((key, value)),
        }
    }
    out
}
