//! Aligned text, and the few figures of statistics that the tables show.

use std::time::Duration;

/// Rows of text under a head; the first column is a name, the others are figures.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Table { rows: vec![head.iter().map(ToString::to_string).collect()] }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len(), "a row is as long as the head");
        self.rows.push(cells);
    }

    pub fn print(&self) {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        for row in &self.rows {
            let mut line = format!("  {:<1$}", row[0], width(0));
            for (column, cell) in row.iter().enumerate().skip(1) {
                line += &format!("  {cell:>0$}", width(column));
            }
            println!("{}", line.trim_end());
        }
    }
}

/// The value that half of the samples are not above.
pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 50.0)
}

/// The smallest sample that at least `percent` of all are not above.
///
/// # Panics
/// Without samples.
pub fn percentile(samples: &[f64], percent: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

/// Says whether a goal is met, in one line.
pub fn print_goal(is_met: bool, goal: &str, found: &str) {
    println!("  goal {}: {goal}; found {found}", if is_met { "met" } else { "NOT MET" });
}
