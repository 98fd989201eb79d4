//! Days of the calendar, as prompts spell them.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Gregorian.
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
}

impl Date {
    /// The day in UTC, by the system's clock.
    pub fn today() -> Date {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Date::of_days((seconds / 86_400) as i64)
    }

    /// The day so many days after 1 January 1970. Eras of 400 years, which begin in March, have 146097
    /// days.
    pub fn of_days(days: i64) -> Date {
        let days = days + 719_468; // from 1 March of the year 0
        let era = days.div_euclid(146_097);
        let of_era = days.rem_euclid(146_097);
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153; // from March
        let day = (of_year - (153 * month + 2) / 5 + 1) as u32;
        let month = if month < 10 { month + 3 } else { month - 9 } as u32;
        Date { year: year + era * 400 + i64::from(month <= 2), month, day }
    }

    /// The day as `strftime` writes it; none where the pattern asks for more than a day, or the date
    /// is none.
    pub fn format(self, pattern: &str) -> Option<String> {
        let month = MONTHS.get((self.month as usize).checked_sub(1)?)?;
        let mut text = String::new();
        let mut characters = pattern.chars();
        while let Some(character) = characters.next() {
            // Writing to a String can't fail.
            let _ = match character {
                '%' => match characters.next()? {
                    'Y' => write!(text, "{:04}", self.year),
                    'y' => write!(text, "{:02}", self.year.rem_euclid(100)),
                    'm' => write!(text, "{:02}", self.month),
                    'd' => write!(text, "{:02}", self.day),
                    'B' => write!(text, "{month}"),
                    'b' | 'h' => write!(text, "{}", &month[..3]),
                    'F' => write!(text, "{:04}-{:02}-{:02}", self.year, self.month, self.day),
                    // Prompts tell the day and not the time.
                    'H' | 'M' | 'S' => write!(text, "00"),
                    '%' => write!(text, "%"),
                    _ => return None,
                },
                other => write!(text, "{other}"),
            };
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, text) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (20_267, "2025-06-28"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(Date::of_days(days).format("%Y-%m-%d").unwrap(), text);
        }
        assert!(Date::today().year >= 2026);
    }

    #[test]
    fn patterns_are_those_of_strftime() {
        let date = Date { year: 2025, month: 6, day: 8 };
        assert_eq!(
            date.format("%d %b %Y, %B %y 100%% %F").unwrap(),
            "08 Jun 2025, June 25 100% 2025-06-08"
        );
        for bad in ["%", "%q", "x %A"] {
            assert_eq!(date.format(bad), None, "{bad}");
        }
        assert_eq!(Date { month: 13, ..date }.format("%b"), None);
        assert_eq!(Date { month: 0, ..date }.format("%b"), None);
    }
}
