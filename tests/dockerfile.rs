//! No machine here builds images. That the build stage has every package of the workspace can be seen without one.

use std::fs;
use std::path::Path;
use std::process::Command;

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    if !from.is_dir() {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        return fs::copy(from, to).map(drop);
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        copy(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

#[test]
fn the_build_stage_has_what_cargo_asks_for() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(root.join("Dockerfile")).unwrap();
    for line in text.lines().take_while(|line| !line.starts_with("RUN")) {
        let Some(words) = line.strip_prefix("COPY ") else { continue };
        let words: Vec<&str> = words.split_whitespace().collect();
        let (to, from) = words.split_last().unwrap();
        for path in from {
            copy(&root.join(path), &folder.path().join(if *to == "./" { path } else { to })).unwrap();
        }
    }
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
}
