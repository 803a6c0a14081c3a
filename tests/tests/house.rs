//! What the workspace promises of itself: which crate needs which, and with what compiler it
//! builds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use lipschitz_tests::skipped;
use serde_json::Value;

fn cargo(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let output = command.args(["--offline"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the packages that `package` is built from, without build scripts and tests.
fn tree(package: &str, more: &[&str]) -> BTreeSet<String> {
    let base = ["tree", "--edges", "normal", "--prefix", "none", "--package", package];
    let text = cargo(&[&base, more].concat());
    text.lines().filter_map(|line| line.split(' ').next()).map(String::from).collect()
}

/// Whoever wants the proof as a library compiles neither data sets nor plots nor a terminal.
#[test]
fn the_proof_needs_no_data_no_plots_and_no_terminal() {
    let needs = tree("lipschitz-certify", &["--no-default-features"]);
    assert!(needs.contains("lipschitz-nn") && needs.contains("lipschitz-opt"));
    for heavy in [
        "anyhow",
        "clap",
        "clap_mangen",
        "comfy-table",
        "image",
        "indicatif",
        "lipschitz-data",
        "lipschitz-import",
        "lipschitz-plot",
        "parquet",
        "pdf-writer",
        "plotters",
        "subsetter",
        "tiny-skia",
        "toml",
    ] {
        assert!(!needs.contains(heavy), "the proof needs {heavy}");
    }
    // Candle itself depends on tokenizers; nothing of ours does.
    let text = cargo(&[
        "tree",
        "--edges",
        "normal",
        "--prefix",
        "depth",
        "--package",
        "lipschitz-certify",
        "--no-default-features",
        "--invert",
        "tokenizers",
    ]);
    let users: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix('1')?.split(' ').next()).collect();
    assert_eq!(users, BTreeSet::from(["candle-core"]), "{text}");
}

/// Dependencies point one way.
#[test]
fn crates_need_those_below_them_alone() {
    let below: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("lipschitz-nn", &[][..]),
        ("lipschitz-plot", &[]),
        ("lipschitz-import", &["lipschitz-nn"]),
        ("lipschitz-opt", &["lipschitz-nn"]),
        ("lipschitz-data", &["lipschitz-import", "lipschitz-nn"]),
        (
            "lipschitz-certify",
            &[
                "lipschitz-data",
                "lipschitz-import",
                "lipschitz-nn",
                "lipschitz-opt",
                "lipschitz-plot",
            ],
        ),
        (
            "lipschitz-train",
            &[
                "lipschitz-certify",
                "lipschitz-data",
                "lipschitz-import",
                "lipschitz-nn",
                "lipschitz-opt",
                "lipschitz-plot",
            ],
        ),
        (
            "lipschitz-python",
            &[
                "lipschitz-certify",
                "lipschitz-data",
                "lipschitz-import",
                "lipschitz-nn",
                "lipschitz-opt",
                "lipschitz-plot",
                "lipschitz-train",
            ],
        ),
    ]);
    for (package, allowed) in below {
        let ours = tree(package, &[]).into_iter().filter(|name| name.starts_with("lipschitz-"));
        let needs: BTreeSet<String> = ours.filter(|name| name != package).collect();
        let allowed: BTreeSet<String> = allowed.iter().map(ToString::to_string).collect();
        assert!(needs.is_subset(&allowed), "{package} needs {needs:?}");
    }
}

/// Whoever opens the repository finds the crates, the book and the tests, and nothing else.
#[test]
fn the_top_of_the_repository_is_in_order() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let files = Command::new("git").args(["-C", root, "ls-files"]).output();
    let Some(files) = files.ok().filter(|files| files.status.success()) else {
        skipped(format_args!("this is no git repository"));
        return;
    };
    let files = String::from_utf8(files.stdout).unwrap();
    let folders: BTreeSet<&str> =
        files.lines().filter_map(|file| Some(file.split_once('/')?.0)).collect();
    let wanted = [".ci", "certify", "docs", "lipschitz-nn", "lipschitz-opt", "tests", "train"];
    assert_eq!(folders, BTreeSet::from(wanted));
}

/// No dependency asks for a newer compiler than the workspace says it needs; that our own code does
/// not is for clippy's `incompatible_msrv`.
#[test]
fn the_compiler_that_is_promised_is_new_enough() {
    let version = |text: &str| -> Vec<u32> {
        text.split('.').take(2).map(|part| part.parse().unwrap()).collect()
    };
    // Of other platforms' dependencies not even the manifests have to be here.
    let rustc = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let rustc = String::from_utf8(rustc).unwrap();
    let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = cargo(&["metadata", "--format-version", "1", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let wants = |package: &Value| package["rust_version"].as_str().map(version);
    let ours = |package: &&Value| package["name"] == "lipschitz-nn";
    let promised = packages.iter().find(ours).and_then(wants).unwrap();
    for package in packages {
        let wanted = wants(package).unwrap_or_default();
        assert!(
            wanted <= promised,
            "{} wants {wanted:?}, promised is {promised:?}",
            package["name"]
        );
    }
}
