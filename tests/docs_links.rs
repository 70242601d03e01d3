//! Every relative link of the pages leads to a file, every #anchor to a heading, and percentages that a page quotes are
//! still in the page that they are from.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let folders = [root().to_owned(), root().join("docs"), root().join("charts/tokenbudget")];
    let files = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ending| ending == "md")).collect()
}

fn read(page: &Path) -> String {
    fs::read_to_string(page).unwrap()
}

/// A page without its blocks of code.
fn prose(text: &str) -> String {
    let mut is_code = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    prose
}

/// The targets of `[text](target)`, but for those inside of `code`.
fn links(text: &str) -> Vec<String> {
    let prose: String = prose(text).split('`').step_by(2).collect();
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    for line in prose(text).lines() {
        let title = line.trim_start_matches('#');
        if title.len() < line.len() && title.starts_with(' ') {
            let slug = slug(title.trim());
            let numbered = (1..).map(|n| format!("{slug}-{n}"));
            let free = std::iter::once(slug.clone()).chain(numbered).find(|anchor| !anchors.contains(anchor));
            anchors.extend(free);
        }
    }
    anchors
}

fn slug(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// What is wrong with a link of a page.
fn problem(page: &Path, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { page.to_owned() } else { page.parent()?.join(path) };
    if !target.exists() {
        return Some(format!("{}: there is no {path}", page.display()));
    }
    let is_page = target.extension().is_some_and(|ending| ending == "md");
    (is_page && !anchor.is_empty() && !anchors(&read(&target)).contains(anchor))
        .then(|| format!("{}: {link} names no heading", page.display()))
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    let mut problems = Vec::new();
    for page in pages() {
        let text = read(&page);
        assert!(prose(&text).matches('`').count().is_multiple_of(2), "{}: a ` is missing", page.display());
        for link in links(&text) {
            seen += 1;
            problems.extend(problem(&page, &link));
        }
    }
    assert!(problems.is_empty(), "{problems:#?}");
    assert!(seen > 40, "only {seen} links were found: are they read?");
}

#[test]
fn a_broken_link_is_found() {
    let page = root().join("docs/faq.md");
    assert_eq!(problem(&page, "operations.md#redis"), None);
    assert!(problem(&page, "nothing.md").is_some());
    assert!(problem(&page, "operations.md#nothing").is_some());
    assert!(problem(&page, "#nothing").is_some());
    assert_eq!(links("[a](b.md) `[c](d.md)` [`e`](f.md#g)\n```\n[h](i.md)\n```\n"), ["b.md", "f.md#g"]);
    let twice = anchors("# The `x`: a, b?\n## Again\n## Again\n");
    assert_eq!(twice.iter().collect::<Vec<_>>(), ["again", "again-1", "the-x-a-b"]);
}

#[test]
fn quoted_percentages_are_those_of_the_simulation() {
    let simulation = read(&root().join("docs/simulation.md"));
    let mut seen = 0;
    for page in ["docs/comparison.md", "docs/faq.md"] {
        let text = read(&root().join(page));
        let words: Vec<&str> = text.split_whitespace().collect();
        for pair in words.windows(2).filter(|pair| pair[1].starts_with('%')) {
            // Some part of the budget, such as 25 %, is no figure.
            if pair[0].contains('.') {
                seen += 1;
                let figure = format!("{} %", pair[0]);
                assert!(simulation.contains(&figure), "{page}: {figure} is not in simulation.md");
            }
        }
    }
    assert!(seen > 6, "only {seen} figures were found: are they read?");
}
