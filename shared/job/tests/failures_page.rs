//! docs/reference/failures.md explains every failure code.

use std::path::Path;

use job::FailureCode;

#[test]
fn every_failure_code_has_one_row_on_its_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/failures.md");
    let page = std::fs::read_to_string(path).expect("docs/reference/failures.md");
    let (of_jobs, _dead_letters) = page.split_once("\n## Dead letters").expect("the section of dead letters");
    let explained: Vec<&str> = of_jobs
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .collect();
    for code in FailureCode::ALL {
        let rows = explained.iter().filter(|explained| **explained == code.as_str()).count();
        assert_eq!(rows, 1, "{code} has {rows} rows in docs/reference/failures.md, expected 1");
    }
    for code in &explained {
        assert!(FailureCode::ALL.iter().any(|known| known.as_str() == *code), "{code} is no failure code");
    }
}
