//! A report as one page of HTML: plots in SVG, nothing fetched, no scripts.

use serde_json::Value;
use std::fmt::Write;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2433; --soft: #667085; --page: #fff; --line: #d9dee7;
  --floor: #2f6fde; --loss: #e07b39; --range: #1d2433; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --page: #14181f;
  --line: #333b49; --floor: #6aa0ff; --loss: #f2a066; --range: #e6e9ef; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
p, th { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; margin: 1rem 0; }
text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.floor { fill: var(--floor); } .loss { fill: var(--loss); } .range { stroke: var(--range); }
";

/// Width of the plot and of its names at least, of a character of them, and of a label behind a bar.
const WIDTH: f64 = 960.0;
const NAMES: f64 = 230.0;
const CHARACTER: f64 = 7.0;
const LABEL: f64 = 170.0;
/// Height of a bar with the space below it.
const ROW: f64 = 26.0;

/// One bar: two parts end to end, and a range drawn over it.
struct Bar {
    name: String,
    parts: [f64; 2],
    range: Option<[f64; 2]>,
    label: String,
}

/// The page of a report, as `--json` writes it.
pub fn page(report: &Value) -> String {
    let text = |key: &str| report[key].as_str().unwrap_or_default();
    let mut title = format!("ironwarp bench {}", text("bench"));
    if let Some(file) = report["file"].as_str() {
        title += &format!(": {file}");
    }
    let rates: Vec<f64> = numbers(&report["copy"]["bytes_per_second"]);
    let rate = rates.get(rates.len() / 2).copied().unwrap_or(0.0);
    let device = report["machine"]["device"].as_str().unwrap_or_default();
    let facts = format!(
        "{device}; copies at {:.0} GB/s (read and written); ironwarp {}",
        rate / 1e9,
        text("version")
    );
    let body = match text("bench") {
        "kernels" => kernels(report),
        "roofline" => roofline(report),
        _ => model(report),
    };
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title><style>{STYLE}</style></head>\n\
         <body><h1>{title}</h1><p>{facts}</p>\n{body}</body></html>\n",
        title = escaped(&title),
        facts = escaped(&facts),
    )
}

fn model(report: &Value) -> String {
    let rows = report["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |row: &Value| row["test"].as_str().unwrap_or_default().to_owned();
    let bar = |row: &Value| {
        let speed = |key: &str| number(&row["tokens_per_second"][key]);
        Bar {
            name: name(row),
            parts: [speed("median"), 0.0],
            range: Some([speed("min"), speed("max")]),
            label: format!("{:.1}", speed("median")),
        }
    };
    let of_kind =
        |kind: &str| rows.iter().filter(|row| row["kind"] == kind).map(bar).collect::<Vec<_>>();
    let mut html = String::new();
    for (kind, head) in [("prompt", "Prompt, tokens/s"), ("generate", "Generation, tokens/s")] {
        let bars = of_kind(kind);
        if !bars.is_empty() {
            let _ = write!(html, "<h2>{head}</h2>{}", plot(&bars)); // a String takes all
        }
    }
    let cells = rows.iter().map(|row| {
        let speed = |key: &str| format!("{:.1}", number(&row["tokens_per_second"][key]));
        let optional = |value: &Value, scale: f64| match value.as_f64() {
            Some(value) => format!("{:.2}", value * scale),
            None => "-".to_owned(),
        };
        vec![
            name(row),
            speed("median"),
            speed("min"),
            speed("max"),
            format!("{:.3}", number(&row["ms_per_token"])),
            optional(&row["weight_bytes_per_step"], 1e-6),
            optional(&row["cache_bytes_per_step"], 1e-6),
            optional(&row["bytes_per_second"], 1e-9),
            optional(&row["share_of_copy"], 100.0),
        ]
    });
    let head = ["test", "tokens/s", "min", "max", "ms/token"];
    let more = ["weights, MB/step", "KV, MB/step", "GB/s", "% of copy"];
    html + &table(&[&head[..], &more].concat(), cells)
}

fn kernels(report: &Value) -> String {
    let rows = report["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    let bar = |row: &Value, value: f64, unit: &str| Bar {
        name: name(row),
        parts: [value, 0.0],
        range: None,
        label: format!("{value:.1}{unit}"),
    };
    let share = |row: &Value| 100.0 * number(&row["share_of_copy"]);
    let shares: Vec<Bar> = rows.iter().map(|row| bar(row, share(row), " %")).collect();
    let of_product = |row: &Value| {
        let rate = row["operations_per_second"].as_f64()?;
        Some(bar(row, rate / 1e12, ""))
    };
    let products: Vec<Bar> = rows.iter().filter_map(of_product).collect();
    let cells = rows.iter().map(|row| {
        let time = |key: &str| format!("{:.2}", number(&row["time_us"][key]));
        vec![
            name(row),
            time("median"),
            time("min"),
            time("max"),
            format!("{:.2}", number(&row["bytes"]) / 1e6),
            format!("{:.1}", number(&row["bytes_per_second"]) / 1e9),
            format!("{:.1}", share(row)),
            match row["operations_per_second"].as_f64() {
                Some(rate) => format!("{:.2}", rate / 1e12),
                None => "-".to_owned(),
            },
            match row["share_of_peak"].as_f64() {
                Some(share) => format!("{:.1}", 100.0 * share),
                None => "-".to_owned(),
            },
            row["copies"].to_string(),
            row["checked"].to_string(),
        ]
    });
    let head = ["kernel/shape", "us", "min", "max", "MB", "GB/s", "% of copy", "TFLOP/s"];
    let more = ["% of peak", "copies", "outputs checked"];
    format!(
        "<h2>Bytes that must be moved, a second: % of the rate at which the device copies</h2>{}\
         <h2>TFLOP/s of products</h2>{}{}",
        plot(&shares),
        plot(&products),
        table(&[&head[..], &more].concat(), cells)
    )
}

fn roofline(report: &Value) -> String {
    let kernels = report["kernels"].as_array().map_or(&[][..], Vec::as_slice);
    let name = |kernel: &Value| kernel["kernel"].as_str().unwrap_or_default().to_owned();
    let bar = |kernel: &Value| {
        let (time, floor) = (number(&kernel["time_us"]), number(&kernel["floor_us"]));
        // A time below its floor has no loss.
        let loss = (time - floor).max(0.0);
        let parts = [time.max(0.0) - loss, loss];
        Bar { name: name(kernel), parts, range: None, label: format!("{time:.1}") }
    };
    let bars: Vec<Bar> = kernels.iter().map(bar).collect();
    let cells = kernels.iter().map(|kernel| {
        let figure = |key: &str| format!("{:.1}", number(&kernel[key]));
        vec![
            name(kernel),
            kernel["launches"].to_string(),
            format!("{:.3}", number(&kernel["bytes"]) / 1e6),
            figure("floor_us"),
            figure("time_us"),
            figure("loss_us"),
            figure("alone_us"),
        ]
    });
    let median = |key: &str| {
        let figures = numbers(&report[key]);
        figures.get(figures.len() / 2).copied().unwrap_or(0.0)
    };
    let (depth, batch) = (&report["depth"], &report["batch"]);
    format!(
        "<p>One decode step of {batch} sequences after {depth} tokens each: {:.1} us by the \
         device's clock, {:.1} us by the host's with the choice of the token.</p>\n\
         <h2>Time of each kernel in us: its floor, then its loss</h2>{}{}",
        median("step_us"),
        median("token_us"),
        plot(&bars),
        table(&["kernel", "launches", "MB", "floor us", "time us", "loss us", "alone us"], cells)
    )
}

/// Bars below each other, the longest of full length.
fn plot(bars: &[Bar]) -> String {
    let end = |bar: &Bar| bar.range.map_or(bar.parts[0] + bar.parts[1], |[_, max]| max);
    let longest = bars.iter().map(end).fold(f64::MIN_POSITIVE, f64::max);
    let characters = bars.iter().map(|bar| bar.name.chars().count()).max().unwrap_or(0);
    let names = (CHARACTER * characters as f64).max(NAMES);
    let full = (WIDTH - LABEL - names).max(LABEL);
    let at = |value: f64| names + full * value / longest;
    let height = ROW * bars.len() as f64;
    let width = names + full + LABEL;
    let mut svg = format!("<svg role=\"img\" viewBox=\"0 0 {width:.0} {height:.0}\">");
    for (i, bar) in bars.iter().enumerate() {
        let (top, middle) = (ROW * i as f64 + 3.0, ROW * i as f64 + 13.0);
        let [first, second] = bar.parts;
        let (x, width, more) = (at(0.0), full * first / longest, full * second / longest);
        let base = middle + 4.0;
        // Writing to a String can't fail.
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"floor\" x=\"{x:.1}\" y=\"{top:.1}\" width=\"{width:.1}\" height=\"20\"/>\
             <rect class=\"loss\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{more:.1}\" height=\"20\"/>",
            names - 8.0,
            escaped(&bar.name),
            x + width,
        );
        if let Some([min, max]) = bar.range {
            let _ = write!(
                svg,
                "<line class=\"range\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{middle:.1}\" \
                 y2=\"{middle:.1}\"/>",
                at(min),
                at(max),
            );
        }
        let (label, after) = (escaped(&bar.label), at(end(bar)) + 8.0);
        let _ = write!(svg, "<text x=\"{after:.1}\" y=\"{base:.1}\">{label}</text>");
    }
    svg + "</svg>\n"
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let row = |cells: Vec<String>, tag: &str| {
        let cells = cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell)));
        format!("<tr>{}</tr>\n", cells.collect::<String>())
    };
    let head = row(head.iter().map(|&cell| cell.to_owned()).collect(), "th");
    let rows: String = rows.map(|cells| row(cells, "td")).collect();
    format!("<div class=\"scroll\"><table>\n{head}{rows}</table></div>\n")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map_or_else(Vec::new, |all| all.iter().filter_map(Value::as_f64).collect())
}

/// Text as HTML shows it.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => html += "&amp;",
            '<' => html += "&lt;",
            '>' => html += "&gt;",
            '"' => html += "&quot;",
            other => html.push(other),
        }
    }
    html
}
