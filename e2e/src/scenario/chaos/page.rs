//! The table in `docs/faults.md`. Pure.

const BEGIN: &str = "<!-- chaos -->\n";
const END: &str = "<!-- /chaos -->\n";

/// The page with this table of this commit in place of the one between its marks; `None` when it has no marks.
pub fn with_table(page: &str, table: &str, commit: &str, cores: usize) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{table}\nOne run of each, with commit {commit}, on {cores} cores.\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_is_replaced() {
        let page = format!("# Faults\n\n{BEGIN}| old |\n{END}\nmore\n");
        let put = with_table(&page, "| new |\n", "abc1234", 2).unwrap();
        assert_eq!(
            put,
            format!("# Faults\n\n{BEGIN}| new |\n\nOne run of each, with commit abc1234, on 2 cores.\n{END}\nmore\n")
        );
        assert_eq!(with_table(&put, "| new |\n", "abc1234", 2), Some(put.clone()));
        assert_eq!(with_table("# Faults\n", "| new |\n", "abc1234", 2), None);
    }

    #[test]
    fn the_page_has_its_marks() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/faults.md"));
        assert!(with_table(page, "", "", 1).is_some());
    }
}
