//! Columns as Go's tabwriter aligns them for Docker (minimum width 10, three spaces between).

/// Least width of a column, with its padding.
const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Aligns rows of cells. The last cell of a row is not padded.
pub fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let longest = rows
                .iter()
                // A cell that ends its row belongs to no column.
                .filter(|row| column + 1 < row.len())
                .map(|row| row[column].chars().count() + PADDING)
                .max();
            longest.unwrap_or(0).max(MIN_WIDTH)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < row.len() {
                out.extend(std::iter::repeat_n(' ', widths[column].saturating_sub(cell.chars().count())));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_line_up() {
        let rows = [vec!["A".into(), "B".into()], vec!["a long cell here".into(), "b".into()]];
        assert_eq!(super::align(&rows), "A                  B\na long cell here   b\n");
        assert_eq!(super::align(&[vec!["x".into(), "y".into()]]), "x         y\n");
    }
}
