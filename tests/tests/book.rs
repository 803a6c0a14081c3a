//! The book: every page is in its summary, every link leads somewhere, and the pages that are made
//! from the code are what the code says.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use lipschitz_certify::terminal::reference::page;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All pages below a directory.
fn pages(directory: &Path, out: &mut BTreeSet<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            pages(&path, out);
        } else if path.extension().is_some_and(|e| e == "md") {
            out.insert(path);
        }
    }
}

/// The pages of the book, and those of the repository that readers come from.
fn all() -> BTreeSet<PathBuf> {
    let mut out = BTreeSet::new();
    pages(&root().join("docs"), &mut out);
    for page in ["README.md", "CONTRIBUTING.md", "certify/README.md", "train/README.md"] {
        out.insert(root().join(page));
    }
    for page in ["lipschitz-nn/README.md", "lipschitz-opt/README.md", "certify/python/README.md"] {
        out.insert(root().join(page));
    }
    out
}

/// A page without its code, in which nothing is a link or a heading.
fn prose(text: &str) -> String {
    let (mut out, mut code) = (String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        } else if !code {
            // Inside of a line, code is between single marks.
            for (i, part) in line.split('`').enumerate() {
                out.push_str(&if i % 2 == 0 { part.to_string() } else { "x".repeat(part.len()) });
            }
            out.push('\n');
        }
    }
    out
}

/// The targets of links and pictures.
fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let ends = prose.match_indices("](").map(|(at, _)| at + 2);
    ends.filter_map(|at| Some(prose[at..].split_once(')')?.0.to_string())).collect()
}

/// What a heading is called in an address, as GitHub and mdBook have it.
fn anchor(heading: &str) -> String {
    let mut out = String::new();
    let plain = heading.split("](").next().unwrap_or_default().replace(['[', '`', '*'], "");
    for c in plain.trim().to_lowercase().chars() {
        match c {
            ' ' => out.push('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => out.push(c),
            _ => {}
        }
    }
    out
}

fn anchors(text: &str) -> BTreeSet<String> {
    let (mut out, mut code) = (BTreeSet::new(), false);
    for line in text.lines() {
        code ^= line.trim_start().starts_with("```");
        if !code && line.starts_with('#') {
            out.insert(anchor(line.trim_start_matches('#')));
        }
    }
    out
}

/// A path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

/// What is wrong with the links of a page.
fn broken(page: &Path, text: &str) -> Vec<String> {
    let mut out = Vec::new();
    for link in links(text) {
        if link.contains("://") || link.starts_with("mailto:") {
            continue;
        }
        let (file, part) = link.split_once('#').unwrap_or((&link, ""));
        let to = match file {
            "" => page.to_path_buf(),
            file => plain(&page.parent().unwrap().join(file)),
        };
        if !to.exists() {
            out.push(format!("{}: {link} is no file", page.display()));
        } else if !part.is_empty() && to.extension().is_some_and(|e| e == "md") {
            let there = std::fs::read_to_string(&to).unwrap();
            if !anchors(&there).contains(part) {
                out.push(format!("{}: {link} is no heading", page.display()));
            }
        }
    }
    out
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for page in all() {
        let text = std::fs::read_to_string(&page).unwrap();
        count += links(&text).len();
        wrong.extend(broken(&page, &text));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "{count}");
}

#[test]
fn links_that_lead_nowhere_are_found() {
    let page = root().join("docs/README.md");
    let here =
        "# A `b` (c), d\n\n[x](start.md) [y](#a-b-c-d) `[z](no.md)`\n\n```sh\n[w](no.md)\n```\n";
    std::fs::read_to_string(root().join("docs/start.md")).unwrap();
    assert!(anchors(here).contains("a-b-c-d"));
    assert_eq!(links(here), ["start.md", "#a-b-c-d"]);
    for wrong in ["[x](no.md)", "[x](start.md#no)", "![x](no.svg)", "[x](../no/README.md)"] {
        assert_eq!(broken(&page, wrong).len(), 1, "{wrong}");
    }
}

#[test]
fn every_page_is_in_the_summary_once() {
    let docs = root().join("docs");
    let summary = std::fs::read_to_string(docs.join("SUMMARY.md")).unwrap();
    let mut listed: Vec<PathBuf> = links(&summary).iter().map(|link| docs.join(link)).collect();
    listed.sort();
    let mut there = BTreeSet::new();
    pages(&docs, &mut there);
    there.remove(&docs.join("SUMMARY.md"));
    assert_eq!(listed, there.into_iter().collect::<Vec<_>>());
    // A picture or a table of a page is beside it, so that the book has it.
    let book = std::fs::read_to_string(docs.join("book.toml")).unwrap();
    assert!(book.contains("src = \".\""));
    // mdBook calls the page of a folder index.html, and leaves links to README.html as they are.
    let folders = listed.iter().filter(|page| page.ends_with("README.md"));
    let mut moved: Vec<String> = folders
        .map(|page| page.strip_prefix(&docs).unwrap().with_extension("html").display().to_string())
        .collect();
    moved.push("SUMMARY.html".into());
    for page in moved {
        assert!(book.contains(&format!("\"/{page}\" = \"index.html\"")), "{page}");
    }
}

/// Every line of the README is read: it is short.
#[test]
fn the_readme_is_short_and_has_the_test_command() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.lines().count() < 120, "{}", readme.lines().count());
    assert!(readme.contains("cargo test --workspace"));
}

/// `certify reference`, `train reference` and `train reference --config` print the pages.
#[test]
fn the_reference_is_what_the_code_says() {
    let pages = [
        ("config", "train reference --config", lipschitz_train::reference::page()),
        ("train", "train reference", page(&lipschitz_train::cli::command())),
        ("certify", "certify reference", page(&lipschitz_certify::cli::command())),
    ];
    for (name, command, wanted) in pages {
        let path = root().join("docs/reference").join(name).with_extension("md");
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let first = found.lines().zip(wanted.lines()).find(|(a, b)| a != b);
        let how = format!("run `{command} > docs/reference/{name}.md`");
        assert!(found == wanted, "{}: {how}; the first difference: {first:?}", path.display());
    }
}
