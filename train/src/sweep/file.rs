//! A sweep as a TOML file: a base, and what varies.
//!
//! ```toml
//! preset = "gpt-shakespeare"            # or base = "config.toml", relative to this file
//!
//! [set]                                 # changes to the base
//! data.path = "tinyshakespeare.txt"
//!
//! [[grid]]                              # all combinations; several blocks are united
//! lipschitz_target = [2, 10]
//! train.seed = [0, 1]
//! constraint = [{ method = "spectral_soft_cap" }, { method = "spectral_normalize" }]
//!
//! [random]                              # every point of the grid with each of these draws
//! count = 5
//! seed = 0
//! train.learning_rate = { log = [0.01, 1.0] }
//! ```

use std::path::{Path, PathBuf};

use lipschitz_nn::text;
use serde::Deserialize;
use toml::{Table, Value};

use super::changes::{Changes, flatten};
use super::random::{self, Random};
use super::{SweepRun, name};
use crate::config::{self, Config};
use crate::error::Within;
use crate::{Error, keys, preset};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    preset: Option<String>,
    base: Option<PathBuf>,
    #[serde(default)]
    set: Table,
    #[serde(default)]
    grid: Grid,
    random: Option<Random>,
}

/// `[grid]` once, or `[[grid]]` several times.
#[derive(Deserialize)]
#[serde(untagged)]
enum Grid {
    One(Table),
    Several(Vec<Table>),
}

impl Default for Grid {
    fn default() -> Self {
        Self::One(Table::new())
    }
}

/// The runs that a sweep file asks for, in its order, each once; `settings` (`path.to.key=value`)
/// hold for all of them.
///
/// # Errors
/// One line that names the file and what is wrong with it, or the run whose config is.
pub fn runs(path: &Path, settings: &[String]) -> Result<Vec<SweepRun>, Error> {
    let text = text::read(path, "a sweep file")?;
    let inside = path.parent().unwrap_or(Path::new(""));
    parse(&text, inside, settings).within(path.display())
}

fn parse(text: &str, inside: &Path, settings: &[String]) -> Result<Vec<SweepRun>, Error> {
    let file: File = keys::read(keys::table(text)?).map_err(|mistake| mistake.at(text))?;
    let mut base = base(&file, inside)?;
    for (key, value) in flatten(file.set, &is_choice) {
        config::put(&mut base, &key, value).map_err(Error::Sweep)?;
    }
    let blocks = match file.grid {
        Grid::One(block) => vec![block],
        Grid::Several(blocks) => blocks,
    };
    let draws = file.random.map_or(Ok(vec![Changes::new()]), random::draws)?;
    let mut points = Vec::new();
    for block in blocks {
        for point in product(block)? {
            if let Some((key, _)) =
                point.iter().find(|(key, _)| draws.iter().flatten().any(|(drawn, _)| drawn == key))
            {
                return Err(Error::Sweep(format!(
                    "`{key}` is in [grid] and in [random]; a run has one value of it, so leave \
                     one out"
                )));
            }
            points.extend(draws.iter().map(|draw| [&point[..], draw].concat()));
        }
    }
    if points.is_empty() {
        return Err(Error::Sweep("asks for no runs".into()));
    }
    let mut configs = Vec::new();
    for point in &points {
        let mut table = base.clone();
        // A whole section before keys inside it, wherever the two are from.
        let mut changes: Vec<_> = point.iter().collect();
        changes.sort_by_key(|(key, _)| key.matches('.').count());
        for (key, value) in changes {
            let put = config::put(&mut table, key, value.clone()).map_err(Error::Sweep);
            put.within(name::describe(point))?;
        }
        for setting in settings {
            config::set(&mut table, setting)?;
        }
        configs.push(Config::from_table(table).within(name::describe(point))?);
    }
    for point in &mut points {
        *point = std::mem::take(point).into_iter().filter_map(|c| kept(c, settings)).collect();
    }
    name::runs(&points, configs)
}

/// What is left of a change under settings that hold for all runs, so that names say what runs are:
/// nothing of a key that is set, and of a section what is set in it.
fn kept((key, mut value): (String, Value), settings: &[String]) -> Option<(String, Value)> {
    for (set, new) in settings.iter().filter_map(|setting| setting.split_once('=')) {
        let set = set.trim();
        let below = |a: &str, b: &str| Some(a.strip_prefix(b)?.strip_prefix('.')?.to_string());
        if key == set || below(&key, set).is_some() {
            return None;
        }
        if let (Some(rest), Value::Table(section)) = (below(set, &key), &mut value) {
            // What cannot be set was said when the config was made.
            let _ = config::set(section, &format!("{rest}={new}"));
        }
    }
    Some((key, value))
}

/// The table that everything else changes.
fn base(file: &File, inside: &Path) -> Result<Table, Error> {
    match (&file.preset, &file.base) {
        (Some(name), None) => keys::table(preset::find(name)?),
        (None, Some(path)) => {
            let path = inside.join(path);
            let text = text::read(&path, "a config")?;
            keys::table(&text).within(path.display())
        }
        _ => Err(Error::Sweep(
            "name what the runs start from: either preset = \"NAME\" or base = \"CONFIG.toml\""
                .into(),
        )),
    }
}

/// Whether a section replaces the base's, as one that says which of several kinds it is does; any
/// other changes the keys that it names.
fn is_choice(table: &Table) -> bool {
    ["kind", "method", "preset"].iter().any(|key| table.contains_key(*key))
}

/// All combinations of a block's values, the last key the fastest. A whole section comes before
/// keys inside it, which its order of keys provides.
fn product(block: Table) -> Result<Vec<Changes>, Error> {
    let mut points = vec![Changes::new()];
    for (key, values) in flatten(block, &|_| false) {
        let Value::Array(values) = values else {
            return Err(Error::Sweep(format!("grid: `{key}` is not a list of values")));
        };
        if values.is_empty() {
            return Err(Error::Sweep(format!("grid: `{key}` has no values")));
        }
        let with =
            |point: &Changes, value: &Value| [&point[..], &[(key.clone(), value.clone())]].concat();
        points =
            points.iter().flat_map(|point| values.iter().map(|value| with(point, value))).collect();
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lipschitz_nn::presets::ModelConfig;
    use lipschitz_opt::OptimizerConfig;

    fn ok(text: &str) -> Vec<SweepRun> {
        parse(text, Path::new(""), &[]).unwrap()
    }

    fn names(members: &[SweepRun]) -> Vec<String> {
        members.iter().map(|m| m.label.clone()).collect()
    }

    const GRID: &str = "preset = 'demo'\n[set]\ntrain.steps = 9\n[grid]\n'train.seed' = [0, \
                        1]\nlipschitz_target = [2, 10]\n";

    #[test]
    fn a_key_of_the_grid_is_not_drawn_too() {
        let text = "preset = \"demo\"\n[grid]\ntrain.seed = [1]\n[random]\ncount = 2\ntrain.seed \
                    = { integer = [1, 9] }\n";
        let said = parse(text, Path::new(""), &[]).unwrap_err().to_string();
        assert!(said.contains("`train.seed` is in [grid] and in [random]"), "{said}");
    }

    #[test]
    fn a_key_of_the_grid_is_set_in_a_section_that_is_drawn() {
        let text = "preset = 'demo'\n[grid]\noptimizer.beta = [0.5, 0.9]\n[random]\ncount = 1\n\
                    optimizer = { choice = [{ kind = 'muon' }] }\n";
        let betas: Vec<f64> = ok(text)
            .iter()
            .map(|m| match &m.config.optimizer {
                OptimizerConfig::Muon(muon) => muon.beta,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(betas, [0.5, 0.9]);
    }

    #[test]
    fn a_grid_is_all_combinations_and_its_names_say_what_varies() {
        let members = ok(GRID);
        let expected = [(2.0, 0), (2.0, 1), (10.0, 0), (10.0, 1)];
        let found: Vec<_> = members
            .iter()
            .map(|m| (m.config.lipschitz_target.unwrap(), m.config.train.seed))
            .collect();
        assert_eq!(found, expected);
        assert!(
            members.iter().all(|m| m.config.train.steps == 9 && m.config.train.batch_size == 16)
        );
        assert_eq!(members[2].label, "lipschitz_target=10, seed=0");
        assert!(members[2].name.starts_with("lipschitz_target=10-seed=0-"), "{}", members[2].name);
        // The digest is of the content, so another file with the same run gives it the same end.
        let alone = ok(
            "preset = 'demo'\n[set]\ntrain.steps = 9\ntrain.seed = 0\nlipschitz_target = 10.0\n",
        );
        let digest = |m: &SweepRun| m.name.rsplit('-').next().unwrap().to_string();
        assert_eq!((alone.len(), digest(&alone[0])), (1, digest(&members[2])));
        assert_eq!(alone[0].config, members[2].config);
    }

    #[test]
    fn sections_vary_as_a_whole_and_blocks_are_united() {
        let text = r#"
            preset = "demo"
            [set]
            optimizer = { kind = "adamw" }
            constraint.sigma_max = 3.0
            [[grid]]
            constraint = [{ method = "none" }, { method = "spectral_normalize", sigma_max = 4 }]
            [[grid]]
            constraint.sigma_max = [3, 5]
            [[grid]]
            constraint.sigma_max = [5.0]
        "#;
        let members = ok(text);
        assert!(members.iter().all(|m| m.config.optimizer.name() == "AdamW"));
        let found: Vec<_> = members
            .iter()
            .map(|m| (m.config.constraint.name(), m.config.constraint.sigma_max()))
            .collect();
        let expected = [
            ("no constraint", None),
            ("spectral normalize", Some(4.0)),
            ("spectral soft cap", Some(3.0)),
            ("spectral soft cap", Some(5.0)),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            names(&members),
            ["none", "spectral_normalize, sigma_max=4", "sigma_max=3", "sigma_max=5"]
        );
        let settings = ["constraint.sigma_max=1".to_string()];
        let one = parse(
            "preset = 'demo'\n[grid]\nconstraint.sigma_max = [3, 5]\n",
            Path::new(""),
            &settings,
        )
        .unwrap();
        assert_eq!(one.len(), 1, "a setting holds for all runs");
    }

    #[test]
    fn draws_stay_when_the_sweep_grows() {
        let text = |count: usize, more: &str| {
            format!(
                "preset = 'demo'\n[random]\ncount = {count}\nseed = 3\n'train.learning_rate' = {{ log = [0.01, 1] }}\n\
                 train.batch_size = {{ integer = [2, 9] }}\noptimizer.nesterov = {{ choice = [true, false] }}\n{more}"
            )
        };
        let few = ok(&text(4, ""));
        let many = ok(&text(40, "[grid]\ntrain.seed = [0, 5]\n"));
        assert_eq!((few.len(), many.len()), (4, 80));
        for (i, member) in few.iter().enumerate() {
            assert_eq!(member.config, many[i].config);
            assert_eq!(member.config.train.learning_rate, many[40 + i].config.train.learning_rate);
        }
        let rates: Vec<f64> = many.iter().map(|m| m.config.train.learning_rate).collect();
        assert!(rates.iter().all(|r| (0.01..=1.0).contains(r)) && rates.iter().any(|r| *r < 0.1));
        let sizes: std::collections::BTreeSet<usize> =
            many.iter().map(|m| m.config.train.batch_size).collect();
        assert_eq!(sizes, (2..=9).collect());
    }

    /// Those of `docs/reproduction`: each can be made, and its README says how many runs it has.
    #[test]
    fn the_sweeps_of_the_reproduction_are_read() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reproduction");
        let readme = std::fs::read_to_string(directory.join("README.md")).unwrap();
        let mut count = 0;
        for entry in directory.read_dir().unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|e| e != "toml") {
                continue;
            }
            let mut members = runs(&path, &[]).unwrap_or_else(|e| panic!("{e:#}"));
            for member in &mut members {
                // Relative to where the command is run, the root of the repository.
                if let ModelConfig::Graph { path } = &mut member.config.model {
                    *path = directory.join("../..").join(&*path);
                }
                let graph = member.config.graph(10).unwrap();
                let (recipe, peak) = (member.config.recipe(), member.config.train.learning_rate);
                recipe
                    .check_for(&graph)
                    .and_then(|()| recipe.check_rates(&graph, peak))
                    .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            }
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let line = readme.lines().find(|line| line.contains(&format!("({name})")));
            let line = line.unwrap_or_else(|| panic!("{name} is not in the README"));
            assert!(
                line.ends_with(&format!("| {} |", members.len())),
                "{name} has {} runs: {line}",
                members.len()
            );
            count += 1;
        }
        assert_eq!(count, 21);
    }

    #[test]
    fn mistakes_name_themselves() {
        let cases = [
            ("", "preset ="),
            ("preset = 'demo'\nbase = 'x.toml'", "either preset"),
            ("preset = 'demon'", "gpt-shakespeare"),
            ("base = 'nowhere.toml'", "nowhere.toml"),
            ("preset = 'demo'\n[girds]\n", "did you mean `grid`?"),
            ("preset = 'demo'\n[grid]\ntrain.seed = 5", "`train.seed` is not a list"),
            ("preset = 'demo'\n[grid]\ntrain.seed = []", "`train.seed` has no values"),
            ("preset = 'demo'\n[grid]\ntrain.sed = [1]", "did you mean `seed`?"),
            ("preset = 'demo'\n[grid]\ntrain.seed = [1, -1]", "seed=-1"),
            ("preset = 'demo'\n[grid]\ntrain.steps = [1, 0]", "train.steps is 0"),
            ("preset = 'demo'\n[random]\ntrain.seed = { choice = [1] }", "count"),
            ("preset = 'demo'\n[random]\ncount = 2\ntrain.seed = 3", "`train.seed`"),
            (
                "preset = 'demo'\n[random]\ncount = 2\ntrain.learning_rate = { log = [0, 1] }",
                "above 0",
            ),
            (
                "preset = 'demo'\n[random]\ncount = 2\ntrain.learning_rate = { uniform = [2, 1] }",
                "[low, high]",
            ),
            ("preset = 'demo'\n[random]\ncount = 0\n", "count is 0"),
        ];
        for (text, expected) in cases {
            let error = format!("{:#}", parse(text, Path::new(""), &[]).unwrap_err());
            assert!(error.contains(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }

    /// Names say what runs are, also where a setting holds for all of them.
    #[test]
    fn a_setting_of_what_varies_is_not_in_the_names() {
        let text = "preset = 'gpt-play'\n[grid]\ntrain.steps = [1, 2]\n\
                    constraint = [{ method = 'none' }, { method = 'svd_clip', sigma_max = 1 }]";
        let with = |setting: &str| names(&parse(text, Path::new(""), &[setting.into()]).unwrap());
        assert_eq!(with("train.seed=3")[3], "svd_clip, sigma_max=1, steps=2");
        assert_eq!(with("train.steps=5"), ["none", "svd_clip, sigma_max=1"]);
        let decay = with("constraint={ method = 'weight_decay', decay = 0.1 }");
        assert_eq!(decay, ["steps=1", "steps=2"]);
        let text = text.replace("'none'", "'stiefel', sigma_max = 3");
        let both = parse(&text, Path::new(""), &["constraint.sigma_max=2".into()]).unwrap();
        assert!(both.iter().all(|m| m.config.constraint.sigma_max() == Some(2.0)));
        let mut names = names(&both);
        names.sort();
        let expected =
            ["stiefel, steps=1", "stiefel, steps=2", "svd_clip, steps=1", "svd_clip, steps=2"];
        assert_eq!(names, expected);
    }
}
