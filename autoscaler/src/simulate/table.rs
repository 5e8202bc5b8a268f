//! The figures as a table, for people.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};

use super::report::Report;

/// A figure: its name, how it is read from a report, and its number of decimals.
struct Row {
    name: &'static str,
    read: fn(&Report) -> f64,
    decimals: usize,
}

const ROWS: [Row; 15] = [
    Row { name: "jobs", read: |report| report.jobs as f64, decimals: 0 },
    Row { name: "never ran", read: |report| report.unfinished as f64, decimals: 0 },
    Row { name: "interrupted", read: |report| report.interrupted as f64, decimals: 0 },
    Row { name: "wait p50 (s)", read: |report| report.wait.p50_s, decimals: 1 },
    Row { name: "wait p95 (s)", read: |report| report.wait.p95_s, decimals: 1 },
    Row { name: "wait p99 (s)", read: |report| report.wait.p99_s, decimals: 1 },
    Row { name: "wait max (s)", read: |report| report.wait.max_s, decimals: 1 },
    Row { name: "most messages ready", read: |report| report.peak_depth as f64, decimals: 0 },
    Row { name: "most workers", read: |report| f64::from(report.peak_workers), decimals: 0 },
    Row { name: "worker-hours", read: |report| report.worker_hours, decimals: 2 },
    Row { name: "of them used (%)", read: |report| 100.0 * report.utilization, decimals: 1 },
    Row { name: "times grown", read: |report| report.scale_ups as f64, decimals: 0 },
    Row { name: "times shrunk", read: |report| report.scale_downs as f64, decimals: 0 },
    Row { name: "flaps", read: |report| report.flaps as f64, decimals: 0 },
    Row { name: "hours simulated", read: |report| report.hours, decimals: 2 },
];

/// Formats one run's figures, or those of two runs side by side, with the second's difference from the first.
pub fn table(first: (&str, &Report), second: Option<(&str, &Report)>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    let mut header = vec!["", first.0];
    header.extend(second.iter().flat_map(|(name, _)| [*name, "difference"]));
    table.set_header(header);
    for row in &ROWS {
        let text = |value: f64| format!("{value:.*}", row.decimals);
        let before = (row.read)(first.1);
        let mut cells = vec![row.name.to_owned(), text(before)];
        if let Some((_, report)) = second {
            let after = (row.read)(report);
            cells.extend([text(after), difference(before, after, row.decimals)]);
        }
        table.add_row(cells);
    }
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table.to_string()
}

/// Formats a difference, such as `+12.5 (+40 %)`; `=` if the table shows the same for both.
fn difference(before: f64, after: f64, decimals: usize) -> String {
    let by = format!("{:+.*}", decimals, after - before);
    if by.trim_matches(['+', '-', '0', '.']).is_empty() {
        return "=".to_owned();
    }
    if before > 0.0 { format!("{by} ({:+.0} %)", 100.0 * (after - before) / before) } else { by }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_shown_with_its_sign_and_part() {
        assert_eq!(difference(30.0, 42.5, 1), "+12.5 (+42 %)");
        assert_eq!(difference(30.0, 15.0, 0), "-15 (-50 %)");
        assert_eq!(difference(0.0, 3.0, 0), "+3");
        assert_eq!(difference(1.01, 1.04, 1), "=");
        assert_eq!(difference(10.0, 110.0, 0), "+100 (+1000 %)");
    }
}
