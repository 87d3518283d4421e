//! What the demo writes: lines that stay, and a table below them that is drawn
//! anew in place on a terminal, and written now and then anywhere else.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::{Context, Failure};

/// Between two tables on a terminal, and where they pile up.
const REDRAW: Duration = Duration::from_millis(500);
const REPRINT: Duration = Duration::from_secs(3);

/// A table this old needs no other one to follow it.
const UP_TO_DATE: Duration = Duration::from_secs(1);

// Control sequences of ECMA-48 and the DEC VT terminals.
const CLEAR_BELOW: &str = "\x1b[J";
const HIDE_CURSOR: &str = "\x1b[?25l";
const SHOW_CURSOR: &str = "\x1b[?25h";
/// A line too long for a narrow window is cut, or the table could not be found
/// again to be drawn over.
const CUT_LINES: &str = "\x1b[?7l";
const WRAP_LINES: &str = "\x1b[?7h";

/// Standard output. Gives the terminal back as it was when dropped.
pub struct Screen {
    is_terminal: bool,
    /// Lines of the table that the cursor stands below.
    drawn: usize,
    last_table: Option<Instant>,
    last_line: Option<Instant>,
}

impl Screen {
    pub fn new() -> Self {
        Self {
            is_terminal: io::stdout().is_terminal(),
            drawn: 0,
            last_table: None,
            last_line: None,
        }
    }

    /// Writes a line that stays, above the table.
    pub fn say(&mut self, line: impl AsRef<str>) -> Result<(), Failure> {
        self.last_line = Some(Instant::now());
        let text = format!("{}{}\n", self.erase(), line.as_ref());
        write(&text)
    }

    /// Whether it is time for the table.
    pub fn wants_table(&self) -> bool {
        let is_over = |pause, since: Option<Instant>| since.is_none_or(|at| at.elapsed() >= pause);
        if self.is_terminal {
            self.drawn == 0 || is_over(REDRAW, self.last_table)
        } else {
            is_over(REPRINT, self.last_table.max(self.last_line))
        }
    }

    /// Whether the last table shows how things are now.
    pub fn is_up_to_date(&self) -> bool {
        self.last_table.is_some_and(|at| at.elapsed() < UP_TO_DATE)
    }

    /// Draws the table.
    pub fn table(&mut self, lines: &[String]) -> Result<(), Failure> {
        self.last_table = Some(Instant::now());
        let mut text = self.erase();
        if self.is_terminal {
            text += HIDE_CURSOR;
            text += CUT_LINES;
            self.drawn = lines.len();
        }
        for line in lines {
            text += line.trim_end();
            text += "\n";
        }
        write(&text)
    }

    /// What takes the table away and puts the cursor where it began.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A{CLEAR_BELOW}"),
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if self.is_terminal {
            // If this fails, the terminal is gone.
            let _ = write(&format!("{WRAP_LINES}{SHOW_CURSOR}"));
        }
    }
}

fn write(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes()).and_then(|()| output.flush()).context("write the output")
}
