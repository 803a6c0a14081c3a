//! Limits on what is measured, from a TOML file.
//!
//! ```toml
//! lipschitz = 1e6      # the certified constant, RMS → RMS
//! logit = 448          # the largest possible logit of attention
//! range = 65504        # the largest possible element of any tensor
//! norm = 4             # the spectral norm of any matrix, RMS → RMS
//!
//! [norms]              # of some matrices: * stands for any letters
//! "blocks.*.query.weight" = 2
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use lipschitz_nn::{Error, text};
use serde::Deserialize;
use wildmatch::WildMatch;

use super::Measured;
use crate::terminal::places;
use crate::upper::Upper;

/// What may not be exceeded.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Of the certified constant, RMS → RMS.
    lipschitz: Option<f64>,
    /// Of the largest possible logit.
    logit: Option<f64>,
    /// Of the largest possible element of any tensor.
    range: Option<f64>,
    /// Of the spectral norm of any matrix, RMS → RMS.
    norm: Option<f64>,
    /// Of matrices by their names.
    #[serde(default)]
    norms: BTreeMap<String, f64>,
}

impl Limits {
    /// Reads a file of limits.
    ///
    /// # Errors
    /// [`Error::File`] names the place of an unknown key, or of a limit that is no number of 0 or
    /// above.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = text::read(path, "limits in TOML")?;
        let limits: Self = toml::from_str(&text)
            .map_err(|error| Error::file(path, places::syntax(&text, &error)))?;
        let single = [
            ("lipschitz", limits.lipschitz),
            ("logit", limits.logit),
            ("range", limits.range),
            ("norm", limits.norm),
        ];
        let single = single.into_iter().filter_map(|(key, limit)| Some((key, limit?)));
        let all = single.chain(limits.norms.iter().map(|(key, limit)| (key.as_str(), *limit)));
        for (key, limit) in all {
            if !(limit.is_finite() && limit >= 0.0) {
                let what = format!("`{key}` is {limit}; a limit is a number of 0 or above");
                return Err(Error::file(path, what));
            }
        }
        Ok(limits)
    }

    /// The limits that do not hold, and those that are of no matrix, in words.
    pub fn breaches(&self, measured: &Measured) -> Vec<String> {
        let mut out = Vec::new();
        let mut check = |what: String, found: Upper, limit: Option<f64>| {
            if let Some(limit) = limit.filter(|limit| found > Upper::from_f64(*limit)) {
                out.push(format!("{what} is bounded by {found}, above {limit}"));
            }
        };
        check("the Lipschitz constant".into(), measured.lipschitz, self.lipschitz);
        if let Some(logit) = measured.largest_logit {
            check("the largest logit".into(), logit, self.logit);
        }
        check(
            format!("the largest element, of `{}`,", measured.widest),
            measured.range,
            self.range,
        );
        for (name, norm) in &measured.norms {
            let norm = Upper::from_f64(*norm);
            check(format!("the norm of `{name}`"), norm, self.norm);
            for (pattern, limit) in &self.norms {
                if WildMatch::new(pattern).matches(name) {
                    check(format!("the norm of `{name}`"), norm, Some(*limit));
                }
            }
        }
        // A slip in a pattern would switch its limit off.
        let of_none = |pattern: &&String| {
            let pattern = WildMatch::new(pattern);
            !measured.norms.keys().any(|name| pattern.matches(name))
        };
        let unused = self.norms.keys().filter(of_none);
        out.extend(unused.map(|pattern| format!("the limit of `{pattern}` is of no matrix here")));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        Measured {
            weights_sha256: String::new(),
            lipschitz: Upper::from_f64(2.0),
            largest_logit: Some(Upper::from_f64(30.0)),
            logits: BTreeMap::new(),
            range: Upper::from_f64(50.0),
            widest: "head".into(),
            norms: [("a.query.weight", 1.5), ("a.key.weight", 0.5)]
                .map(|(n, x)| (n.into(), x))
                .into(),
            proven: 0,
            reused: 0,
        }
    }

    #[test]
    fn limits_are_read_and_held() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("limits.toml");
        let read = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Limits::read(&file)
        };
        let breaches = |text: &str| read(text).unwrap().breaches(&measured());
        assert!(breaches("").is_empty());
        assert!(breaches("lipschitz = 2\nlogit = 30\nrange = 50\nnorm = 1.5").is_empty());
        for (text, what) in [
            ("lipschitz = 1.9", "Lipschitz constant"),
            ("logit = 29", "logit"),
            ("range = 49", "`head`"),
            ("norm = 1.4", "`a.query.weight`"),
            ("[norms]\n\"*.key.*\" = 0.4", "`a.key.weight`"),
            ("[norms]\n\"*.kay.*\" = 0.4", "`*.kay.*` is of no matrix"),
        ] {
            let found = breaches(text);
            assert!(found.len() == 1 && found[0].contains(what), "{text}: {found:?}");
        }
        // What is not bounded is above every limit.
        let unknown = Measured { lipschitz: Upper::INFINITY, ..measured() };
        assert_eq!(read("lipschitz = 1e300").unwrap().breaches(&unknown).len(), 1);
        for (text, what) in [
            ("lipshitz = 1", "unknown field `lipshitz`"),
            ("norm = nan", "`norm` is NaN"),
            ("norm = -1", "`norm` is -1"),
            ("[norms]\na = inf", "`a` is inf"),
            ("norm = \"x\"", "line 1"),
            ("norm = = 1", "line 1"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(what), "{text}: {said}");
        }
    }
}
