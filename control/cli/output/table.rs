//! Tables: aligned columns, no borders, bold heads on a terminal.
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table as Grid, presets};
use switchback_control::Fault;

use crate::output;

/// A table under construction.
pub(crate) struct Table {
    grid: Grid,
}

/// A column: its head, and whether its cells are figures (aligned right).
pub(crate) enum Column {
    /// Text.
    Text(&'static str),
    /// Figures.
    Figure(&'static str),
}

impl Table {
    /// A table with these columns.
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self::styled(columns, output::colour_stdout())
    }

    fn styled(columns: &[Column], colour: bool) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        if colour {
            grid.enforce_styling();
        } else {
            grid.force_no_tty();
        }
        grid.set_header(columns.iter().map(|column| {
            let (Column::Text(head) | Column::Figure(head)) = column;
            Cell::new(head).add_attribute(Attribute::Bold)
        }));
        for (index, column) in columns.iter().enumerate() {
            if let Some(slot) = grid.column_mut(index) {
                slot.set_padding((0, 2));
                if matches!(column, Column::Figure(_)) {
                    slot.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        Self { grid }
    }

    /// Adds a row: one text per column.
    pub(crate) fn row<I: IntoIterator<Item = String>>(&mut self, cells: I) {
        self.grid.add_row(cells.into_iter().map(|cell| printable(&cell)));
    }

    /// Prints it, or `nothing` if it has no rows.
    pub(crate) fn print(&self, nothing: &str) -> Result<(), Fault> {
        if self.grid.is_empty() { output::line(nothing) } else { output::line(&self.render()) }
    }

    /// As it is printed.
    pub(crate) fn render(&self) -> String {
        let lines: Vec<_> = self.grid.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }
}

/// Names come from other machines: what could move a cursor must not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::Text("NAME"), Column::Figure("RTT"), Column::Text("STATE")];

    #[test]
    fn columns_line_up_and_figures_stand_right() {
        let mut table = Table::styled(&COLUMNS, false);
        table.row(["ssh".into(), "0.34 ms".into(), "active".into()]);
        table.row(["webserver".into(), "341 ms".into(), "paused".into()]);
        assert_eq!(
            table.render(),
            "NAME           RTT  STATE\n\
             ssh        0.34 ms  active\n\
             webserver   341 ms  paused"
        );
    }

    #[test]
    fn colour_is_only_there_when_wanted_and_names_cannot_bring_their_own() {
        let row = ["\x1b[31mred".to_owned(), String::new(), String::new()];
        let mut table = Table::styled(&COLUMNS, false);
        table.row(row.clone());
        assert!(!table.render().contains('\x1b'));
        let mut table = Table::styled(&COLUMNS, true);
        table.row(row);
        assert!(table.render().contains("\x1b[1m"));
        assert!(!table.render().contains("\x1b[31m"));
    }
}
