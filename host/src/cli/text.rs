//! Numbers and lines as people read them.

use std::io::{self, Write};

/// A number of bytes in the unit that fits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // 2^10 to 2^63 bytes: 0 to 5.
    let unit = (bytes.ilog2() / 10 - 1) as usize;
    format!("{:.2} {}", bytes as f64 / 1024f64.powi(unit as i32 + 1), UNITS[unit])
}

/// A number with its thousands apart.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The beginning of a text, if it is longer than `most` characters.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// Columns of a table.
#[derive(Clone, Copy)]
pub enum Column {
    /// Text, and the last column of a row.
    Left,
    /// Numbers.
    Right,
}

/// Writes rows indented by two, each column as wide as its widest cell.
pub fn table<const N: usize>(
    out: &mut dyn Write,
    columns: [Column; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    for row in rows {
        let mut line = String::new();
        for ((cell, column), width) in row.iter().zip(columns).zip(widths) {
            line += &match column {
                Column::Left => format!("  {cell:<width$}"),
                Column::Right => format!("  {cell:>width$}"),
            };
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}
