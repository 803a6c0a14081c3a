//! Small plays written by a seeded grammar: something to learn that needs no download, with a known
//! entropy.
//!
//! A model's validation loss can be compared with [`entropy_per_character`], which no model
//! undercuts in the long run; one that sees only a window of text ends above it, as it cannot know
//! what was settled before.

mod grammar;
mod script;
mod words;

use std::sync::OnceLock;

use lipschitz_nn::graph::Input;
use lipschitz_nn::random;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::corpus::{self, Corpus};
use crate::error::in_range;
use crate::{DataKind, DataSet, Error, memory};
use grammar::Grammar;

/// The size of a corpus unless another is asked for, in characters.
pub const CHARACTERS: usize = 1_200_000;

/// Seed of the plays that are trained on.
const SEED: u64 = 1;

/// `kind = "play"`: generated plays, nothing to download.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlayConfig {
    /// How many characters to write.
    #[serde(default = "characters")]
    pub characters: usize,
}

fn characters() -> usize {
    CHARACTERS
}

impl Default for PlayConfig {
    fn default() -> Self {
        Self { characters: CHARACTERS }
    }
}

/// More characters than anybody waits for.
const MAX_CHARACTERS: usize = 1_000_000_000;

impl DataKind for PlayConfig {
    fn check(&self) -> Result<(), Error> {
        in_range("characters", self.characters, 1..=MAX_CHARACTERS)
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        // The text, and its tokens.
        memory::check(2.0 * self.characters as f64, || "the play".into())?;
        Ok(Box::new(Corpus::from_text("play", &text(SEED, self.characters), None, None)?))
    }

    fn reads(&self, input: Input) -> bool {
        corpus::reads(input)
    }
}

/// The first `characters` characters of the plays of a seed; ASCII only.
pub fn text(seed: u64, characters: usize) -> String {
    let mut text = grammar().write(&mut random::keyed(seed, "play", 0), characters);
    // All words are ASCII, so a byte is a character.
    text.truncate(characters);
    text
}

/// The entropy of the plays in nats per character: entropy of one play over its expected length.
///
/// Exact but for rounding: the grammar's texts have one derivation each, which the grammar checks
/// when it is made.
pub fn entropy_per_character() -> f64 {
    static ENTROPY: OnceLock<f64> = OnceLock::new();
    *ENTROPY.get_or_init(|| {
        let (entropy, length) = grammar().entropy_and_length();
        entropy / length
    })
}

/// The logarithm of the probability that plays begin with this text, less what its last, cut-off
/// word gives away; `None` for a text that is not the beginning of plays.
pub fn log_probability(text: &str) -> Option<f64> {
    grammar().log_probability(text)
}

fn grammar() -> &'static Grammar {
    static GRAMMAR: OnceLock<Grammar> = OnceLock::new();
    GRAMMAR.get_or_init(|| {
        Grammar::new(&script::rules()).expect("the built-in rules are read by a test")
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_rules_can_be_read_back_in_one_way() {
        Grammar::new(&script::rules()).unwrap();
    }

    #[test]
    fn a_corpus_has_the_size_asked_for_and_depends_on_the_seed_alone() {
        let long = text(1, CHARACTERS);
        assert!(long.len() == CHARACTERS && long.is_ascii());
        assert_eq!(long, text(1, CHARACTERS));
        assert!(long.starts_with(&text(1, 1000)));
        assert_ne!(text(2, 1000), text(1, 1000));
        assert_eq!(text(1, 0), "");
    }

    #[test]
    fn the_entropy_is_what_samples_show() {
        let exact = entropy_per_character();
        for seed in 0..3 {
            let shown = -log_probability(&text(seed, CHARACTERS)).unwrap() / CHARACTERS as f64;
            eprintln!("seed {seed}: {shown:.5} nats per character, exactly {exact:.5}");
            assert!((shown / exact - 1.0).abs() < 0.005, "{shown} {exact}");
        }
    }

    #[test]
    fn single_characters_show_far_more_entropy() {
        let text = text(1, CHARACTERS);
        let mut counts = BTreeMap::new();
        text.bytes().for_each(|byte| *counts.entry(byte).or_insert(0.0) += 1.0 / text.len() as f64);
        let unigram: f64 = counts.values().map(|p: &f64| -p * p.ln()).sum();
        eprintln!("{} distinct characters, unigram entropy {unigram:.4}", counts.len());
        assert!(unigram > 2.0 * entropy_per_character());
    }

    #[test]
    fn it_reads_as_plays() {
        let text = text(7, 300_000);
        eprintln!("{}", &text[..1500]);
        for part in [
            "ACT 1\n\nScene 1. ",
            "\n\nORLA:\n",
            "[Enter Orla and Bram]",
            "[Exeunt]",
            "THE END",
            "?",
        ] {
            assert!(text.contains(part), "{part}");
        }
        let speeches =
            text.split("\n\n").filter(|part| part.lines().next().is_some_and(|l| l.ends_with(':')));
        let speeches: Vec<&str> = speeches.collect();
        let distinct: BTreeSet<&&str> = speeches.iter().collect();
        assert!(
            speeches.len() > 1000 && distinct.len() * 10 > speeches.len() * 9,
            "{} {}",
            speeches.len(),
            distinct.len()
        );
    }

    #[test]
    fn a_text_of_another_kind_has_no_probability() {
        assert_eq!(log_probability("THE TRAGEDY OF NOBODY"), None);
        assert!(log_probability("THE TRAGEDY OF ORLA\n\nACT 1").unwrap() < 0.0);
    }
}
