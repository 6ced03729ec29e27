//! Facts in columns, as many as fit.

/// A column: its title, and whether its cells stand right.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Above the cells.
    pub title: &'static str,
    /// Numbers do.
    pub right: bool,
    /// Where there is too little room, columns with the highest number go first; 0 never goes.
    pub rank: u8,
}

impl Column {
    /// A column of words.
    pub const fn left(title: &'static str, rank: u8) -> Self {
        Self { title, right: false, rank }
    }

    /// A column of numbers.
    pub const fn right(title: &'static str, rank: u8) -> Self {
        Self { title, right: true, rank }
    }
}

const GAP: &str = "  ";

/// The title line, then a line for each row, in columns; without those that `width` has no room for, and those that are empty.
pub fn lines<const N: usize>(columns: &[Column; N], rows: &[[String; N]], width: Option<usize>) -> Vec<String> {
    let mut shown: Vec<(usize, &Column, usize)> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
            (at, column, cells.max().unwrap_or(0))
        })
        .filter(|(_, column, cells)| column.rank == 0 || *cells > 0)
        .map(|(at, column, cells)| (at, column, cells.max(column.title.len())))
        .collect();
    let total = |shown: &[(usize, &Column, usize)]| shown.iter().map(|(.., cells)| cells + GAP.len()).sum::<usize>();
    while width.is_some_and(|width| total(&shown) > width + GAP.len()) {
        let last = shown.iter().map(|(_, column, _)| column.rank).max().filter(|rank| *rank > 0);
        let Some(last) = last else { break };
        shown.retain(|(_, column, _)| column.rank < last);
    }
    let line = |cell: &dyn Fn(usize, &Column) -> String| {
        let cells = shown.iter().map(|(at, column, cells)| {
            let cell = cell(*at, column);
            if column.right { format!("{cell:>cells$}") } else { format!("{cell:cells$}") }
        });
        cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
    };
    let mut lines = vec![line(&|_, column| column.title.to_owned())];
    lines.extend(rows.iter().map(|row| line(&|at, _| row.get(at).cloned().unwrap_or_default())));
    lines
}

/// Numbers as a row of bars, the largest one full; nothing where there are fewer than two.
pub fn sparkline(numbers: impl IntoIterator<Item = i64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let numbers: Vec<i64> = numbers.into_iter().map(|number| number.max(0)).collect();
    let largest = numbers.iter().copied().max().unwrap_or(0).max(1);
    if numbers.len() < 2 {
        return String::new();
    }
    let bar = |number: &i64| {
        let step = i128::from(*number) * (BARS.len() as i128 - 1) / i128::from(largest);
        BARS.get(usize::try_from(step).unwrap_or(0)).copied().unwrap_or(' ')
    };
    numbers.iter().map(bar).collect()
}

/// Seconds in the two largest units that they have: `45s`, `12m 5s`, `6d 23h`.
pub fn span(seconds: i64) -> String {
    const UNITS: [(&str, u64); 4] = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let mut rest = seconds.unsigned_abs();
    let parts = UNITS.iter().map(|(unit, length)| {
        let number = rest / length;
        rest %= length;
        (number, unit)
    });
    let parts: Vec<_> =
        parts.skip_while(|(number, _)| *number == 0).take(2).filter(|(number, _)| *number > 0).collect();
    let text: Vec<String> = parts.iter().map(|(number, unit)| format!("{number}{unit}")).collect();
    let sign = if seconds < 0 { "-" } else { "" };
    if text.is_empty() { "0s".to_owned() } else { format!("{sign}{}", text.join(" ")) }
}

/// The columns of the terminal; `None` where results go elsewhere.
pub fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size_of(std::io::stdout()).map(|(terminal_size::Width(width), _)| usize::from(width))
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] =
        [Column::left("TABLE", 0), Column::right("ROWS", 1), Column::left("NOTE", 2), Column::left("NEVER", 3)];

    fn shown(width: Option<usize>) -> Vec<String> {
        let row = |table: &str, rows: &str| [table.to_owned(), rows.to_owned(), "fine".to_owned(), String::new()];
        lines(&COLUMNS, &[row("cold.a", "12"), row("cold.long", "3,000")], width)
    }

    #[test]
    fn columns_are_as_wide_as_their_cells_and_empty_ones_are_left_out() {
        let expected = ["TABLE       ROWS  NOTE", "cold.a        12  fine", "cold.long  3,000  fine"];
        assert_eq!(shown(None), expected);
        assert_eq!(shown(Some(22)), expected);
    }

    #[test]
    fn the_least_important_columns_go_first() {
        assert_eq!(shown(Some(21)), ["TABLE       ROWS", "cold.a        12", "cold.long  3,000"]);
        assert_eq!(shown(Some(3)), ["TABLE", "cold.a", "cold.long"]);
    }

    #[test]
    fn a_sparkline_scales_to_its_largest() {
        assert_eq!(sparkline([0, 5, 10]), "▁▄█");
        assert_eq!((sparkline([7]), sparkline([0, 0])), (String::new(), "▁▁".to_owned()));
        assert_eq!(sparkline([i64::MAX, i64::MIN]), "█▁");
    }

    #[test]
    fn spans_have_two_units() {
        let spans = [0, 45, 725, 3600, 3605, 603_000, -90].map(span);
        assert_eq!(spans, ["0s", "45s", "12m 5s", "1h", "1h", "6d 23h", "-1m 30s"]);
    }
}
