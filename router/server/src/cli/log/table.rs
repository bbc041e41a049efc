//! Columns under their names, numbers to the right.

/// Lines of cells.
pub(super) struct Table {
    heads: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heads: &[&'static str]) -> Table {
        Table { heads: heads.to_vec(), rows: Vec::new() }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.heads.len());
        self.rows.push(cells);
    }

    /// Its lines, indented by two; nothing if there are none. The last column, where texts stand, begins at its left.
    pub(super) fn text(&self) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.chain([self.heads[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.heads.len()).map(width).collect();
        let heads: Vec<String> = self.heads.iter().map(|head| (*head).to_owned()).collect();
        let mut text = String::new();
        for row in std::iter::once(&heads).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if column + 1 == row.len() { format!("  {cell}") } else { format!("  {cell:>width$}") };
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

pub(super) fn plural(count: u64, one: &str) -> String {
    match (count, one.strip_suffix("ch")) {
        (1, _) => format!("1 {one}"),
        (_, Some(_)) => format!("{count} {one}es"),
        _ => format!("{count} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_under_each_other() {
        let mut table = Table::new(&["segment", "n", "what"]);
        assert_eq!(table.text(), "");
        table.row(vec!["1".into(), "1000".into(), "log".into()]);
        table.row(vec!["20".into(), "7".into(), String::new()]);
        assert_eq!(table.text(), "  segment     n  what\n        1  1000  log\n       20     7\n");
    }

    #[test]
    fn one_is_singular() {
        assert_eq!(
            [plural(1, "batch"), plural(2, "batch"), plural(0, "record")],
            ["1 batch", "2 batches", "0 records"]
        );
    }
}
