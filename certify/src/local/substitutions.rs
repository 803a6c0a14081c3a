//! Which words can be exchanged: for each window of text, whatever so many of its tokens become.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lipschitz_nn::Model;
use lipschitz_nn::graph::{Graph, Input};
use serde::{Deserialize, Serialize};

use super::survey::{Decision, Global, decision};
use super::{Claims, Distance, Local, Replacements, Settings, exact};
use crate::Error;
use crate::bound::WeightNorms;
use crate::robust::{self, largest};
use crate::spectral::Method;

/// What a token may become.
#[derive(Clone, Debug, PartialEq)]
pub enum Allowed {
    /// Any of so many other tokens whose embedding vectors are nearest.
    Nearest(usize),
    /// For each token, these. Tokens that are not listed stay.
    Listed(BTreeMap<u32, Vec<u32>>),
}

/// How much is tried.
#[derive(Clone, Debug)]
pub struct Trials {
    /// Windows, from the first.
    pub limit: usize,
    /// The most tokens that are replaced in one.
    pub most: usize,
    /// Sequences that are tried for each window and number of tokens.
    pub trials: usize,
    /// Steps of the search for a proof by ellipsoids; 0: by norms alone.
    pub search: usize,
    /// Special tokens, which neither replace others nor are replaced.
    pub fixed: Vec<u32>,
}

/// How many tokens can be exchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Substitutions {
    /// Name in tables.
    pub label: String,
    /// SHA-256 of the weights, in f64.
    pub weights_sha256: String,
    /// The most tokens that are replaced in one window.
    pub most: usize,
    /// One for each window.
    pub inputs: Vec<Substituted>,
}

/// One window of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Substituted {
    /// Its number in the data.
    pub input: usize,
    /// Its token ids.
    pub ids: Vec<u32>,
    /// The largest output: the class or the next token.
    pub class: usize,
    /// By how much it exceeds the second.
    pub margin: f64,
    /// The tokens that each may become.
    pub allowed: Vec<Vec<u32>>,
    /// The decision is proven to stay whatever so many of the tokens become, or fewer.
    pub proven: usize,
    /// How that is known.
    pub by: Option<Proof>,
    /// The fewest replacements that were found to change the decision.
    pub broken: Option<Vec<Replaced>>,
    /// Seconds of the proof and the search.
    pub seconds: f64,
}

/// How something is known of all replacements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// By the proof around the window.
    Bound,
    /// Every one of them was run, with its rounding bounded.
    Trials,
}

/// A token that becomes another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replaced {
    /// Its place in the window.
    pub position: usize,
    /// What it is.
    pub from: u32,
    /// What it becomes.
    pub to: u32,
}

/// Token ids and embedding vectors of a language model.
struct Vocabulary {
    /// `[tokens, dim]`
    rows: Vec<f64>,
    dim: usize,
    /// Begins another document, so that it replaces nothing.
    separator: Option<u32>,
    /// Special tokens, which neither replace others nor are replaced.
    fixed: Vec<u32>,
}

impl Vocabulary {
    fn new(model: &Model, fixed: &[u32]) -> Result<Self, Error> {
        let graph: &Graph = model.graph();
        let (Input::Tokens { separator, .. }, Some(node)) = (graph.input(), graph.nodes().first())
        else {
            return Err(Error::Data(
                "the model reads no tokens, so that none can be replaced".into(),
            ));
        };
        let lipschitz_nn::graph::Op::Embedding { vocabulary, dim } = node.op else {
            return Err(Error::Data("the model has no table of embedding vectors".into()));
        };
        let ids: Vec<u32> = (0..vocabulary as u32).collect();
        let ids = Tensor::from_vec(ids, (vocabulary, 1), &Device::Cpu)?;
        let rows = model.embed(&ids)?.flatten_all()?.to_vec1()?;
        Ok(Self { rows, dim, separator, fixed: fixed.to_vec() })
    }

    fn row(&self, id: u32) -> &[f64] {
        &self.rows[id as usize * self.dim..(id as usize + 1) * self.dim]
    }

    fn size(&self) -> usize {
        self.rows.len() / self.dim.max(1)
    }

    /// What each token may become.
    ///
    /// # Errors
    /// [`Error::Data`] for a token that the model does not have.
    fn allowed(&self, allowed: &Allowed, id: u32) -> Result<Vec<u32>, Error> {
        let known = |other: &u32| (*other as usize) < self.size();
        let stays = |other: &u32| Some(*other) == self.separator || self.fixed.contains(other);
        if self.fixed.contains(&id) {
            return Ok(Vec::new());
        }
        let mut others: Vec<u32> = match allowed {
            Allowed::Listed(lists) => lists.get(&id).cloned().unwrap_or_default(),
            Allowed::Nearest(count) => {
                let own = self.row(id);
                let away = |other: u32| -> f64 {
                    self.row(other).iter().zip(own).map(|(a, b)| (a - b) * (a - b)).sum()
                };
                let others = (0..self.size() as u32).filter(|other| *other != id && !stays(other));
                let mut all: Vec<(f64, u32)> = others.map(|other| (away(other), other)).collect();
                all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                all.into_iter().take(*count).map(|(_, other)| other).collect()
            }
        };
        if let Some(other) = others.iter().find(|other| !known(other)) {
            let what = format!("token {other} as a replacement: the model has {}", self.size());
            return Err(Error::Data(what));
        }
        others.sort_unstable();
        others.dedup();
        others.retain(|other| *other != id && !stays(other));
        Ok(others)
    }
}

/// One window, and what its tokens may become.
struct Window<'a> {
    model: &'a Model,
    words: &'a Vocabulary,
    global: &'a Global,
    ids: Vec<u32>,
    allowed: Vec<Vec<u32>>,
    class: usize,
}

/// What a run of replaced tokens says.
enum Outcome {
    /// The decision stays, whatever rounding did.
    Stays,
    /// Another output is the largest.
    Changes,
    /// The outputs are too near one another to know.
    Unknown,
}

/// Sequences that are run at once.
const BATCH: usize = 64;

impl Window<'_> {
    /// The outcome of each of these replacements, and the margin that is left.
    fn run(&self, all: &[Vec<(usize, u32)>]) -> Result<Vec<(Outcome, f64)>, Error> {
        let (tokens, dim) = (self.ids.len(), self.words.dim);
        let mut out = Vec::with_capacity(all.len());
        for some in all.chunks(BATCH) {
            let mut data = Vec::with_capacity(some.len() * tokens * dim);
            for replaced in some {
                let mut ids = self.ids.clone();
                replaced.iter().for_each(|(position, to)| ids[*position] = *to);
                ids.iter().for_each(|id| data.extend_from_slice(self.words.row(*id)));
            }
            let x = Tensor::from_vec(data, (some.len(), tokens, dim), &Device::Cpu)?;
            for z in robust::outputs(self.model, &x)?.to_vec2::<f64>()? {
                let others = z.iter().enumerate().filter(|(j, _)| *j != self.class);
                let margin = z[self.class] - others.fold(f64::NEG_INFINITY, |m, (_, z)| m.max(*z));
                let outcome = match largest(&z) {
                    _ if self.global.decides(&z, self.class) => Outcome::Stays,
                    Some((class, _)) if class != self.class => Outcome::Changes,
                    _ => Outcome::Unknown,
                };
                out.push((outcome, margin));
            }
        }
        Ok(out)
    }

    /// How many ways there are to replace exactly so many tokens.
    fn ways(&self, count: usize) -> usize {
        let mut ways = vec![0_usize; count + 1];
        ways[0] = 1;
        for allowed in &self.allowed {
            for k in (1..=count).rev() {
                ways[k] = ways[k].saturating_add(ways[k - 1].saturating_mul(allowed.len()));
            }
        }
        ways[count]
    }

    /// All of them.
    fn all(&self, count: usize) -> Vec<Vec<(usize, u32)>> {
        let mut all: Vec<Vec<(usize, u32)>> = vec![Vec::new()];
        for _ in 0..count {
            let longer = |some: Vec<(usize, u32)>| {
                let first = some.last().map_or(0, |(position, _)| position + 1);
                let rest = first..self.ids.len();
                rest.flat_map(move |position| {
                    let some = some.clone();
                    self.allowed[position].iter().map(move |to| {
                        let mut more = some.clone();
                        more.push((position, *to));
                        more
                    })
                })
                .collect::<Vec<_>>()
            };
            all = all.into_iter().flat_map(longer).collect();
        }
        all
    }

    fn named(&self, replaced: &[(usize, u32)]) -> Vec<Replaced> {
        let of = |(position, to): &(usize, u32)| Replaced {
            position: *position,
            from: self.ids[*position],
            to: *to,
        };
        replaced.iter().map(of).collect()
    }

    /// One token after the other, each time the one that leaves the least margin, of the most promising.
    fn attack(
        &self,
        claims: &Claims,
        most: usize,
        trials: usize,
    ) -> Result<Option<Vec<(usize, u32)>>, Error> {
        let mut singles: Vec<(f64, (usize, u32))> = Vec::new();
        for (position, allowed) in self.allowed.iter().enumerate() {
            let own = self.words.row(self.ids[position]);
            for to in allowed {
                let change: Vec<f64> =
                    self.words.row(*to).iter().zip(own).map(|(y, x)| y - x).collect();
                singles.push((claims.left(position, &change), (position, *to)));
            }
        }
        singles.sort_by(|a, b| a.0.total_cmp(&b.0));
        singles.truncate(trials);
        let mut chosen: Vec<(usize, u32)> = Vec::new();
        for _ in 0..most {
            let free = singles.iter().map(|(_, single)| *single);
            let free = free.filter(|(position, _)| chosen.iter().all(|(p, _)| p != position));
            let all: Vec<Vec<(usize, u32)>> = free
                .map(|single| {
                    let mut all = chosen.clone();
                    all.push(single);
                    all
                })
                .collect();
            let found = self.run(&all)?;
            let best = found.iter().enumerate().min_by(|a, b| a.1.1.total_cmp(&b.1.1));
            let Some((i, (outcome, _))) = best else { return Ok(None) };
            chosen.clone_from(&all[i]);
            if matches!(outcome, Outcome::Changes) {
                chosen.sort_unstable();
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }
}

/// For the first windows of `batches` of token ids: how many tokens may become what is allowed, all at
/// once, before the decision can change. `watch` is called with the number of each window before it.
///
/// # Errors
/// [`Error::Violated`] if fewer replacements than are proven were found to change a decision; others if
/// the data or the replacements do not fit the model.
pub fn substitutions<E: Into<robust::BoxError>>(
    model: &Model,
    batches: impl IntoIterator<Item = Result<(Tensor, Tensor), E>>,
    allowed: &Allowed,
    trials: &Trials,
    watch: &dyn Fn(usize),
) -> Result<Substitutions, Error> {
    let model = exact(model)?;
    let words = Vocabulary::new(&model, &trials.fixed)?;
    let norms = WeightNorms::new(&model, Method::Proven, &|_| {});
    let windows = robust::windows(&model, batches, trials.limit)?;
    let known = |id: &&u32| (**id as usize) < words.size();
    if let Some(id) = windows.iter().flatten().find(|id| !known(id)) {
        return Err(Error::Data(format!("token {id}: the model has {}", words.size())));
    }
    let cases: robust::Cases = Vec::new();
    let settings = Settings {
        distance: Distance::Token,
        limit: trials.limit,
        radii: Vec::new(),
        attack: None,
        search: trials.search,
    };
    let global = Global::new(&model, &norms, &cases, &settings)?;
    let local = Local::new(&model, &norms, global.ellipsoids())?;
    let mut inputs = Vec::new();
    for (input, ids) in windows.into_iter().enumerate() {
        watch(input);
        let start = std::time::Instant::now();
        let x: Vec<f64> = ids.iter().flat_map(|id| words.row(*id)).copied().collect();
        let point = local.at(&Tensor::from_slice(&x, (ids.len(), words.dim), &Device::Cpu)?)?;
        let Decision { class, margin, claims, .. } = decision(&point, &global, input)?;
        let allowed: Vec<Vec<u32>> =
            ids.iter().map(|id| words.allowed(allowed, *id)).collect::<Result<_, _>>()?;
        let vectors: Vec<Vec<f64>> = allowed
            .iter()
            .map(|ids| ids.iter().flat_map(|id| words.row(*id)).copied().collect())
            .collect();
        let most = trials.most.min(allowed.iter().filter(|ids| !ids.is_empty()).count());
        let window = Window { model: &model, words: &words, global: &global, ids, allowed, class };
        let (mut proven, mut by) = (0, None);
        let all = Replacements::new(&x, words.dim, &vectors, most)?;
        while proven < most && point.withstands(&claims, &all.up_to(proven + 1)) {
            (proven, by) = (proven + 1, Some(Proof::Bound));
        }
        let mut broken = None;
        let decided = proven > 0 || global.decides(point.outputs(), class);
        for count in proven + 1..=most {
            if !decided || window.ways(count) > trials.trials {
                break;
            }
            let all = window.all(count);
            let found = window.run(&all)?;
            let changes = found.iter().position(|(f, _)| matches!(f, Outcome::Changes));
            if let Some(i) = changes {
                broken = Some(all[i].clone());
                break;
            }
            if found.iter().any(|(f, _)| matches!(f, Outcome::Unknown)) {
                break;
            }
            (proven, by) = (count, Some(Proof::Trials));
        }
        if broken.is_none() && proven < most {
            broken = window.attack(&claims, most, trials.trials)?;
        }
        if let Some(found) = broken.as_ref().filter(|found| found.len() <= proven) {
            return Err(Error::Violated(format!(
                "input {input}: replacing {} tokens changes the decision, but {proven} are proven not \
                 to: this is a defect, please report it",
                found.len()
            )));
        }
        inputs.push(Substituted {
            input,
            broken: broken.map(|found| window.named(&found)),
            ids: window.ids,
            class,
            margin,
            allowed: window.allowed,
            proven,
            by,
            seconds: start.elapsed().as_secs_f64(),
        });
    }
    let weights_sha256 = crate::pinned::Pinned::new(&model)?.digest().to_string();
    Ok(Substitutions { label: String::new(), weights_sha256, most: trials.most, inputs })
}
