//! The documentation has every fault of `make chaos`.

use clap::ValueEnum;
use rig::scenario::chaos::Fault;

#[test]
fn every_fault_has_a_row() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md");
    let text = std::fs::read_to_string(path).unwrap();
    for fault in Fault::value_variants() {
        let (name, title) = fault.told();
        assert!(text.contains(&format!("| {title} |")), "docs/faults.md has no row of {name}: {title}");
    }
}
