//! Weighted grammars whose texts can be read back in one way only, so that their entropy is known
//! exactly.
//!
//! A rule is a list of weighted alternatives, an alternative a non-empty sequence of literal texts
//! and rules. Follow the leftmost symbol of an alternative down to literals: these are the texts it
//! can begin with. [`Grammar::new`] demands that over all alternatives of a rule no such literal is
//! a prefix of another. Reading a text from the left, the characters ahead then match at most
//! one alternative at every choice, so **a text has one derivation**, and its probability is the
//! product of the choices in it.
//!
//! Therefore the entropy of a rule's text is the entropy of its derivation, and that is linear in
//! the rules: `H(A) = Σ p (−ln p + Σ H(symbols))`, with `L(A) = Σ p Σ L(symbols)` for the expected
//! length. For texts drawn independently and put one behind the other (still read in one way only),
//! the law of large numbers over the texts gives `−ln p(first n characters) / n → H / L` with
//! probability one: the entropy per character.

use std::collections::BTreeMap;

use rand_chacha::ChaCha8Rng;

use lipschitz_nn::random::below;

/// A grammar that passed the checks; rule 0 is where a text starts.
#[derive(Debug)]
pub(super) struct Grammar {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    name: String,
    total: u64,
    alternatives: Vec<Alternative>,
}

#[derive(Debug)]
struct Alternative {
    weight: u32,
    symbols: Vec<Symbol>,
    /// The literals it can begin with.
    first: Vec<String>,
}

#[derive(Clone, Debug)]
enum Symbol {
    Text(String),
    Rule(usize),
}

/// Rules in the making: names, each with weights and templates in which `{name}` stands for a rule.
pub(super) type Templates = Vec<(String, Vec<(u32, String)>)>;

impl Grammar {
    /// Reads templates; the first rule is where a text starts.
    ///
    /// # Errors
    /// One line that names the rule: defined twice, missing, empty, left-recursive, or with two
    /// alternatives that the text ahead cannot tell apart.
    pub(super) fn new(templates: &Templates) -> Result<Self, String> {
        let mut ids = BTreeMap::new();
        for (id, (name, _)) in templates.iter().enumerate() {
            if ids.insert(name.as_str(), id).is_some() {
                return Err(format!("`{name}` is defined twice"));
            }
        }
        let mut rules = Vec::new();
        for (name, alternatives) in templates {
            let total = alternatives.iter().map(|(weight, _)| u64::from(*weight)).sum();
            let read = |(weight, template): &(u32, String)| {
                let symbols = symbols(template, &ids).map_err(|e| format!("`{name}`: {e}"))?;
                match *weight {
                    0 => Err(format!("`{name}`: weight 0")),
                    weight => Ok(Alternative { weight, symbols, first: Vec::new() }),
                }
            };
            let alternatives: Vec<_> = alternatives.iter().map(read).collect::<Result<_, _>>()?;
            if alternatives.is_empty() {
                return Err(format!("`{name}` has no alternative"));
            }
            rules.push(Rule { name: name.clone(), total, alternatives });
        }
        let mut grammar = Self { rules };
        grammar.find_first()?;
        Ok(grammar)
    }

    /// Fills in what every alternative can begin with, and refuses those that cannot be told apart.
    fn find_first(&mut self) -> Result<(), String> {
        let mut known: Vec<Option<Vec<String>>> = vec![None; self.rules.len()];
        for rule in 0..self.rules.len() {
            self.first_of(rule, &mut known, 0)?;
        }
        for rule in &mut self.rules {
            for alternative in &mut rule.alternatives {
                alternative.first = match &alternative.symbols[0] {
                    Symbol::Text(text) => vec![text.clone()],
                    Symbol::Rule(id) => known[*id].clone().unwrap_or_default(),
                };
            }
            if rule.alternatives.len() > 1 {
                let mut all: Vec<&String> =
                    rule.alternatives.iter().flat_map(|a| &a.first).collect();
                all.sort();
                // Sorted, a prefix of anything is a prefix of its successor.
                if let Some(pair) =
                    all.windows(2).find(|pair| pair[1].starts_with(pair[0].as_str()))
                {
                    return Err(format!(
                        "`{}` cannot tell {:?} from {:?}",
                        rule.name, pair[0], pair[1]
                    ));
                }
            }
        }
        Ok(())
    }

    fn first_of(
        &self,
        id: usize,
        known: &mut [Option<Vec<String>>],
        depth: usize,
    ) -> Result<Vec<String>, String> {
        if let Some(first) = &known[id] {
            return Ok(first.clone());
        }
        let rule = &self.rules[id];
        if depth > self.rules.len() {
            return Err(format!("`{}` begins with itself", rule.name));
        }
        let mut all = Vec::new();
        for alternative in &rule.alternatives {
            match &alternative.symbols[0] {
                Symbol::Text(text) => all.push(text.clone()),
                Symbol::Rule(other) => all.extend(self.first_of(*other, known, depth + 1)?),
            }
        }
        known[id] = Some(all.clone());
        Ok(all)
    }

    /// Entropy in nats and expected length in characters of one text.
    ///
    /// The equations are iterated to their least solution; it is finite because every text ends
    /// with probability one, and quickly enough (tested against what samples show).
    pub(super) fn entropy_and_length(&self) -> (f64, f64) {
        let mut value = vec![(0.0, 0.0); self.rules.len()];
        for _ in 0..100_000 {
            let mut moved = 0.0_f64;
            for id in (0..self.rules.len()).rev() {
                let (mut entropy, mut length) = (0.0, 0.0);
                for alternative in &self.rules[id].alternatives {
                    let p = f64::from(alternative.weight) / self.rules[id].total as f64;
                    let parts = alternative.symbols.iter().map(|symbol| match symbol {
                        Symbol::Text(text) => (0.0, text.chars().count() as f64),
                        Symbol::Rule(other) => value[*other],
                    });
                    let (h, l) =
                        parts.fold((0.0, 0.0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
                    entropy += p * (h - p.ln());
                    length += p * l;
                }
                moved = moved
                    .max((length - value[id].1) / length)
                    .max((entropy - value[id].0) / length);
                value[id] = (entropy, length);
            }
            if moved < 1e-15 {
                break;
            }
        }
        value[0]
    }

    /// Writes texts one behind the other until there are at least `bytes` bytes.
    pub(super) fn write(&self, rng: &mut ChaCha8Rng, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 1024);
        let mut ahead: Vec<&Symbol> = Vec::new();
        while text.len() < bytes {
            match ahead.pop() {
                None => ahead.push(&Symbol::Rule(0)),
                Some(Symbol::Text(literal)) => text.push_str(literal),
                Some(Symbol::Rule(id)) => {
                    let rule = &self.rules[*id];
                    let mut draw = below(rng, rule.total as usize);
                    let chosen = rule.alternatives.iter().find(|alternative| {
                        let weight = alternative.weight as usize;
                        let here = draw < weight;
                        draw = draw.saturating_sub(weight);
                        here
                    });
                    ahead.extend(
                        chosen.into_iter().flat_map(|alternative| alternative.symbols.iter().rev()),
                    );
                }
            }
        }
        text
    }

    /// The logarithm of the probability of the choices that a text shows, read from the text alone;
    /// the last text may be cut off anywhere. `None` for what this grammar does not write.
    pub(super) fn log_probability(&self, mut text: &str) -> Option<f64> {
        let (mut sum, mut ahead): (f64, Vec<&Symbol>) = (0.0, Vec::new());
        while !text.is_empty() {
            match ahead.pop() {
                None => ahead.push(&Symbol::Rule(0)),
                Some(Symbol::Text(literal)) => match text.strip_prefix(literal.as_str()) {
                    Some(rest) => text = rest,
                    None if literal.starts_with(text) => return Some(sum),
                    None => return None,
                },
                Some(Symbol::Rule(id)) => {
                    let rule = &self.rules[*id];
                    let begins =
                        |a: &&Alternative| a.first.iter().any(|f| text.starts_with(f.as_str()));
                    let chosen = match rule.alternatives.as_slice() {
                        [only] => only,
                        several => match several.iter().find(begins) {
                            Some(alternative) => alternative,
                            None => {
                                let mut first = several.iter().flat_map(|a| &a.first);
                                return first.any(|f| f.starts_with(text)).then_some(sum);
                            }
                        },
                    };
                    sum += (f64::from(chosen.weight) / rule.total as f64).ln();
                    ahead.extend(chosen.symbols.iter().rev());
                }
            }
        }
        Some(sum)
    }
}

/// The symbols of a template.
fn symbols(template: &str, ids: &BTreeMap<&str, usize>) -> Result<Vec<Symbol>, String> {
    let (mut symbols, mut rest) = (Vec::new(), template);
    while !rest.is_empty() {
        let (literal, tail) = rest.split_once('{').unwrap_or((rest, ""));
        if !literal.is_empty() {
            symbols.push(Symbol::Text(literal.to_string()));
        }
        if literal.len() == rest.len() {
            break;
        }
        let (name, after) =
            tail.split_once('}').ok_or_else(|| format!("`{template}` lacks a `}}`"))?;
        symbols.push(Symbol::Rule(
            *ids.get(name).ok_or_else(|| format!("there is no rule `{name}`"))?,
        ));
        rest = after;
    }
    if symbols.is_empty() { Err("an alternative is empty".to_string()) } else { Ok(symbols) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lipschitz_nn::random::keyed;

    fn grammar(rules: &[(&str, &[(u32, &str)])]) -> Result<Grammar, String> {
        let alternatives =
            |list: &[(u32, &str)]| list.iter().map(|(w, t)| (*w, t.to_string())).collect();
        Grammar::new(
            &rules.iter().map(|(name, list)| (name.to_string(), alternatives(list))).collect(),
        )
    }

    #[test]
    fn entropy_and_length_of_a_geometric_word_are_the_textbook_ones() {
        // a…ab with chance 3/4 to go on: 3 a's and a b on average, and h(1/4) a letter.
        let (h, l) =
            grammar(&[("word", &[(3, "a{word}"), (1, "b")])]).unwrap().entropy_and_length();
        let bit = -(0.75_f64 * 0.75_f64.ln() + 0.25 * 0.25_f64.ln());
        assert!((l - 4.0).abs() < 1e-12 && (h - 4.0 * bit).abs() < 1e-12, "{h} {l}");
    }

    #[test]
    fn probabilities_of_all_texts_of_a_finite_grammar_sum_to_one() {
        let g = grammar(&[
            ("s", &[(1, "the {n}s{v}"), (2, "a {n}{v}")]),
            ("n", &[(3, "cat"), (1, "dog")]),
            ("v", &[(1, " runs."), (4, " sleeps.")]),
        ]);
        let (g, mut sum, mut entropy, mut length) = (g.unwrap(), 0.0, 0.0, 0.0);
        for start in ["the cats", "the dogs", "a cat", "a dog"] {
            for end in [" runs.", " sleeps."] {
                let text = format!("{start}{end}");
                let log = g.log_probability(&text).unwrap();
                sum += log.exp();
                entropy -= log.exp() * log;
                length += log.exp() * text.len() as f64;
            }
        }
        let (h, l) = g.entropy_and_length();
        assert!(
            (sum - 1.0).abs() < 1e-12 && (h - entropy).abs() < 1e-12 && (l - length).abs() < 1e-12
        );
        assert_eq!(g.log_probability("the cat sleeps."), None);
        assert_eq!(
            g.log_probability("the c"),
            Some((1.0_f64 / 3.0).ln()),
            "the cut-off word is not counted"
        );
    }

    #[test]
    fn what_cannot_be_read_back_in_one_way_is_refused() {
        let refused = |rules: &[(&str, &[(u32, &str)])]| grammar(rules).unwrap_err();
        assert!(refused(&[("s", &[(1, "sea"), (1, "season")])]).contains("cannot tell"));
        assert!(
            refused(&[("s", &[(1, "{t}x"), (1, "{t}y")]), ("t", &[(1, "t")])])
                .contains("cannot tell")
        );
        assert!(refused(&[("s", &[(1, "{s}a"), (1, "b")])]).contains("begins with itself"));
        assert!(refused(&[("s", &[(1, "a"), (1, "")])]).contains("empty"));
        assert!(refused(&[("s", &[(1, "{nowhere}")])]).contains("no rule `nowhere`"));
        assert!(refused(&[("s", &[(0, "a")])]).contains("weight 0"));
        assert!(refused(&[("s", &[(1, "a")]), ("s", &[(1, "b")])]).contains("twice"));
        assert!(refused(&[("s", &[(1, "{s")])]).contains("lacks"));
    }

    #[test]
    fn alternatives_are_drawn_by_weight() {
        let g = grammar(&[("s", &[(1, "a"), (2, "b"), (5, "c")])]).unwrap();
        let text = g.write(&mut keyed(1, "test", 0), 80_000);
        for (letter, share) in [('a', 10_000.0), ('b', 20_000.0), ('c', 50_000.0)] {
            let count = text.chars().filter(|c| *c == letter).count() as f64;
            assert!((count - share).abs() < 500.0, "{letter} {count}");
        }
    }
}
