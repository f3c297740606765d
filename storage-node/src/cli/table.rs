//! Tables for people: columns as wide as their widest cell, two spaces between, no lines.

/// Where a column's text stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// Text.
    Left,
    /// Numbers.
    Right,
}

/// A table that is built row by row.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(crate) fn new(columns: &[(&'static str, Align)]) -> Self {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells stay empty, empty cells show as `-`.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().take(self.columns.len()).map(printable).collect();
        row.resize(self.columns.len(), "-".to_owned());
        self.rows.push(row);
    }

    /// The text, each line ended; nothing but the headings when there are no rows.
    pub(crate) fn render(&self) -> String {
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|column| {
                let cells = self.rows.iter().chain([&heading]).map(|row| row[column].chars().count());
                cells.max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        for row in [&heading].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (cell, (width, (_, align))) in row.iter().zip(widths.iter().zip(&self.columns)) {
                let padding = " ".repeat(width - cell.chars().count());
                match align {
                    Align::Left => line += &format!("{cell}{padding}  "),
                    Align::Right => line += &format!("{padding}{cell}  "),
                }
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// A cell without anything that could move a terminal's cursor.
fn printable(cell: String) -> String {
    if cell.is_empty() {
        return "-".to_owned();
    }
    cell.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("HEALTH", Align::Left)]);
        table.row(["vm".into(), "20 GiB".into(), "healthy".into()]);
        table.row(["database".into(), "1 TiB".into(), "down".into()]);
        assert_eq!(table.render(), "NAME        SIZE  HEALTH\nvm        20 GiB  healthy\ndatabase   1 TiB  down\n");
    }

    #[test]
    fn no_rows_leave_the_headings() {
        assert_eq!(Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right)]).render(), "NAME  SIZE\n");
    }

    #[test]
    fn short_rows_empty_cells_and_control_characters_are_tame() {
        let mut table = Table::new(&[("A", Align::Left), ("B", Align::Left)]);
        table.row(["x\u{1b}[2J\n".into()]);
        table.row([String::new(), "y".into(), "dropped".into()]);
        assert_eq!(table.render(), "A       B\nx [2J   -\n-       y\n");
    }

    #[test]
    fn width_counts_characters_not_bytes() {
        let mut table = Table::new(&[("N", Align::Left), ("M", Align::Left)]);
        table.row(["äö".into(), "1".into()]);
        table.row(["ab".into(), "2".into()]);
        assert_eq!(table.render(), "N   M\näö  1\nab  2\n");
    }
}
