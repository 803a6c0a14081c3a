//! Replacements of tokens: read from a file, and what was proven of them, printed.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Result, bail};
use lipschitz_certify::local::{Allowed, Proof, Replaced, Substituted, Substitutions};
use lipschitz_certify::outln;
use lipschitz_certify::terminal::tables::{self, fitted};
use lipschitz_certify::terminal::{self, shown};
use lipschitz_certify::upper::down;
use lipschitz_data::codec::Codec;
use lipschitz_nn::checkpoint::Meta;
use lipschitz_nn::strict;

/// The replacements that a file lists, as token ids.
pub(super) fn listed(path: &Path, model: &Path, meta: &Meta) -> Result<Allowed> {
    let text = terminal::read(path, "a list of replacements")?;
    let lists = strict::no_key_twice(text.as_bytes()).and_then(|()| serde_json::from_str(&text));
    let lists: BTreeMap<String, Vec<String>> = lists.map_err(|e| {
        let what = "is no JSON object of a list of replacements for each token";
        lipschitz_nn::Error::file(path, format!("{what}: {e}"))
    })?;
    let Some(tokenizer) = &meta.tokenizer else {
        bail!(
            "{}: has no tokenizer, so that words cannot be replaced; try --nearest",
            model.display()
        )
    };
    let codec = Codec::new(tokenizer)?;
    let token = |word: &str| -> Result<u32> {
        let ids = codec.encode(word).map_err(|e| lipschitz_nn::Error::file(path, e))?;
        match ids[..] {
            [id] => Ok(id),
            _ => {
                let what = format!("{word:?} is {} tokens of the model, not one", ids.len());
                Err(lipschitz_nn::Error::file(path, what).into())
            }
        }
    };
    // Two words can be one token: it may become what either may.
    let mut all: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (word, others) in &lists {
        let others = others.iter().map(|other| token(other)).collect::<Result<Vec<_>>>()?;
        all.entry(token(word)?).or_default().extend(others);
    }
    Ok(Allowed::Listed(all))
}

/// A line for each input.
pub(super) fn csv(found: &Substitutions) -> String {
    let mut out = String::from("input,class,margin,replaceable,proven,by,changed,seconds\n");
    for row in &found.inputs {
        let replaceable = row.allowed.iter().filter(|ids| !ids.is_empty()).count();
        let changed = row.broken.as_ref().map_or(String::new(), |all| all.len().to_string());
        out += &format!(
            "{},{},{},{replaceable},{},{},{changed},{:.4}\n",
            row.input,
            row.class,
            super::local::number(row.margin),
            row.proven,
            by(row),
            row.seconds
        );
    }
    out
}

fn by(row: &Substituted) -> &'static str {
    match row.by {
        Some(Proof::Bound) => "bound",
        Some(Proof::Trials) => "trials",
        None => "",
    }
}

pub(super) fn print(found: &Substitutions, word: &dyn Fn(u32) -> String) {
    let header = ["input", "class", "margin", "replaceable", "proven", "by", "changed by"];
    let mut table = tables::table(&header, 0..5);
    for row in &found.inputs {
        let replaced = |r: &Replaced| {
            format!("{}: {} → {}", r.position, shown(&word(r.from)), shown(&word(r.to)))
        };
        let changed = match &row.broken {
            Some(all) => all.iter().map(replaced).collect::<Vec<_>>().join(", "),
            None => "–".into(),
        };
        table.add_row([
            row.input.to_string(),
            row.class.to_string(),
            down(row.margin),
            row.allowed.iter().filter(|ids| !ids.is_empty()).count().to_string(),
            row.proven.to_string(),
            by(row).into(),
            changed,
        ]);
    }
    outln!("{}", fitted(table));
    let n = found.inputs.len();
    for count in 1..=found.most {
        let of = |f: &dyn Fn(&Substituted) -> bool| found.inputs.iter().filter(|r| f(r)).count();
        let all =
            |row: &Substituted| row.allowed.iter().filter(|ids| !ids.is_empty()).count().min(count);
        let tokens = if count == 1 { "token" } else { "tokens" };
        outln!(
            "any {count} {tokens}: {} of {n} decisions proven to stay, {} changed",
            of(&|row| row.proven >= all(row)),
            of(&|row| row.broken.as_ref().is_some_and(|broken| broken.len() <= count))
        );
    }
}
