//! Lists of HTTP statuses, by class and one by one: `["4xx", "503"]`.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Deserializer};

use super::values::{List, string_that_is};

/// A set of statuses from 200 to 599.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Statuses([u64; Self::WORDS]);

impl Statuses {
    const FIRST: u16 = 200;
    const LAST: u16 = 599;
    const WORDS: usize = (Self::LAST - Self::FIRST) as usize / 64 + 1;

    /// Those of these classes: 5 is 500 to 599. There is none below 2 or above 5.
    pub fn of_classes(classes: RangeInclusive<u16>) -> Self {
        let mut statuses = Statuses([0; Self::WORDS]);
        statuses.add(classes.start() * 100..=classes.end() * 100 + 99);
        statuses
    }

    /// Whether a status is one of them.
    pub fn has(&self, status: u16) -> bool {
        let Some(bit) = status.checked_sub(Self::FIRST) else { return false };
        let word = self.0.get(usize::from(bit / 64)).copied().unwrap_or(0);
        word >> (bit % 64) & 1 == 1
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    fn add(&mut self, statuses: RangeInclusive<u16>) {
        let known = (Self::FIRST..=Self::LAST).filter(|status| statuses.contains(status));
        for bit in known.map(|status| status - Self::FIRST) {
            self.0[usize::from(bit / 64)] |= 1 << (bit % 64);
        }
    }
}

impl fmt::Debug for Statuses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((Self::FIRST..=Self::LAST).filter(|it| self.has(*it))).finish()
    }
}

/// Reads a list of statuses of the class `CLASS`, which is 2 to 5, and those above it.
pub fn statuses<'de, const CLASS: u16, D: Deserializer<'de>>(
    from: D,
) -> Result<Statuses, D::Error> {
    let List(entries) = List::<Entry<CLASS>>::deserialize(from)?;
    let mut statuses = Statuses([0; Statuses::WORDS]);
    entries.into_iter().for_each(|Entry(range)| statuses.add(range));
    Ok(statuses)
}

/// The statuses that one entry of a list names.
struct Entry<const CLASS: u16>(RangeInclusive<u16>);

impl<'de, const CLASS: u16> Deserialize<'de> for Entry<CLASS> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let classes: Vec<_> = (CLASS..=5).map(|class| format!("\"{class}xx\"")).collect();
        let expected = format!("{} or a status from \"{CLASS}00\" to \"599\"", classes.join(", "));
        string_that_is(&expected, from, |text| {
            // `parse` takes a sign, too.
            let number = |digits: &str| {
                digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
            };
            let range = match text.strip_suffix("xx") {
                Some(digit) if digit.len() == 1 => {
                    let first = 100 * number(digit)?;
                    first..=first + 99
                }
                None if text.len() == 3 => {
                    let one = number(text)?;
                    one..=one
                }
                _ => return None,
            };
            (CLASS..=5).contains(&(range.start() / 100)).then_some(Entry(range))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error, SeqDeserializer};

    use super::*;

    fn read<const CLASS: u16>(list: &[&str]) -> Result<Statuses, String> {
        let list = SeqDeserializer::<_, Error>::new(list.iter().copied());
        statuses::<CLASS, _>(list).map_err(|error| error.to_string())
    }

    fn all(statuses: &Statuses) -> Vec<u16> {
        (0..=u16::MAX).filter(|status| statuses.has(*status)).collect()
    }

    #[test]
    fn a_list_has_what_it_names_and_nothing_else() {
        assert_eq!(all(&read::<2>(&["200", "263", "264", "599"]).unwrap()), [200, 263, 264, 599]);
        let classes = read::<2>(&["2xx", "5xx"]).unwrap();
        assert_eq!(all(&classes), (200..300).chain(500..600).collect::<Vec<u16>>());
        assert!(read::<2>(&[]).unwrap().is_empty() && !classes.is_empty());
        assert_eq!(Statuses::of_classes(2..=3), read::<2>(&["2xx", "3xx"]).unwrap());
    }

    #[test]
    fn what_is_no_status_of_its_classes_is_refused_with_what_is_allowed() {
        for text in
            ["", "xx", "0xx", "1xx", "6xx", "22xx", "+xx", "199", "600", "+20", "2000", "5XX"]
        {
            let allowed = r#""2xx", "3xx", "4xx", "5xx" or a status from "200" to "599""#;
            assert_eq!(read::<2>(&[text]).unwrap_err(), format!("{text:?} is not {allowed}"));
        }
        let allowed = r#""4xx", "5xx" or a status from "400" to "599""#;
        for text in ["3xx", "399"] {
            assert_eq!(read::<4>(&[text]).unwrap_err(), format!("{text:?} is not {allowed}"));
        }
    }
}
