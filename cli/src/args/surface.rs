//! Choosing and sorting by the protect surface, for every command that shows devices or their traffic.

use std::cmp::{Ordering, Reverse};
use std::str::FromStr;

use anteroom_controller_core::surface::{Criticality, Sensitivity, Surface};
use clap::{Args, ValueEnum};

/// Which devices, by their protect surface. What has two ends is shown where one of them fits.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Protect surface")]
pub struct SurfaceArgs {
    /// Only what has to do with devices of this criticality: life-support, clinical, support or unset; several with commas
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub criticality: Vec<Wanted<Criticality>>,
    /// Only what has to do with devices of this sensitivity: patient-data, internal, none or unset; several with commas
    #[arg(long, value_name = "WORD", value_delimiter = ',')]
    pub sensitivity: Vec<Wanted<Sensitivity>>,
    /// Only what has to do with devices whose owner has this in it; capital letters don't matter
    #[arg(long, value_name = "TEXT")]
    pub owner: Option<String>,
    /// Only what has to do with devices whose location has this in it; capital letters don't matter
    #[arg(long, value_name = "TEXT")]
    pub location: Option<String>,
    /// Sort by this, the most critical or sensitive first
    #[arg(long, value_name = "WHAT", value_enum)]
    pub sort: Option<SortBy>,
}

/// A word, or that nobody said one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<T> {
    /// Nobody said anything.
    Unset,
    /// This.
    Word(T),
}

impl<T: FromStr> FromStr for Wanted<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "unset" { Ok(Self::Unset) } else { text.parse().map(Self::Word) }
    }
}

/// By what to sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// How much care hangs on it
    Criticality,
    /// What its data tell of patients
    Sensitivity,
    /// Who answers for it
    Owner,
    /// Where it stands
    Location,
}

impl SurfaceArgs {
    /// Whether only some are wanted.
    #[must_use]
    pub const fn chooses(&self) -> bool {
        let Self { criticality, sensitivity, owner, location, sort: _ } = self;
        !(criticality.is_empty() && sensitivity.is_empty() && owner.is_none() && location.is_none())
    }

    /// Whether a device with this is wanted.
    #[must_use]
    pub fn fits(&self, surface: &Surface) -> bool {
        fn text(wanted: Option<&String>, found: Option<&String>) -> bool {
            wanted.is_none_or(|wanted| {
                found.is_some_and(|found| found.to_lowercase().contains(&wanted.to_lowercase()))
            })
        }
        self.fits_criticality(surface.criticality())
            && is_one_of(&self.sensitivity, surface.sensitivity())
            && text(self.owner.as_ref(), surface.owner.as_ref().map(|said| &said.value))
            && text(self.location.as_ref(), surface.location.as_ref().map(|said| &said.value))
    }

    /// Whether something of this criticality is wanted.
    #[must_use]
    pub fn fits_criticality(&self, found: Option<Criticality>) -> bool {
        is_one_of(&self.criticality, found)
    }

    /// Whether one of the two ends of something is wanted.
    #[must_use]
    pub fn fits_either(&self, ends: [&Surface; 2]) -> bool {
        ends.into_iter().any(|surface| self.fits(surface))
    }

    /// Sorts `rows` by what was asked for; they keep their order where nothing was, and among equals. `ends` gives the devices of a row: it
    /// stands where the foremost of them does.
    pub fn sort<T>(&self, rows: &mut [T], ends: impl Fn(&T) -> [&Surface; 2]) {
        let Some(by) = self.sort else { return };
        rows.sort_by(|a, b| by.compare(by.foremost(ends(a)), by.foremost(ends(b))));
    }
}

fn is_one_of<T: Copy + PartialEq>(wanted: &[Wanted<T>], found: Option<T>) -> bool {
    wanted.is_empty() || wanted.contains(&found.map_or(Wanted::Unset, Wanted::Word))
}

impl SortBy {
    fn foremost(self, [a, b]: [&Surface; 2]) -> &Surface {
        if self.compare(b, a).is_lt() { b } else { a }
    }

    /// The foremost first; of whom nothing is said comes last.
    fn compare(self, a: &Surface, b: &Surface) -> Ordering {
        let text = |found: &Surface| {
            let said = match self {
                Self::Owner => found.owner.as_ref(),
                _ => found.location.as_ref(),
            };
            let value = said.map(|said| said.value.to_lowercase());
            (value.is_none(), value)
        };
        match self {
            Self::Criticality => Reverse(a.criticality()).cmp(&Reverse(b.criticality())),
            Self::Sensitivity => Reverse(a.sensitivity()).cmp(&Reverse(b.sensitivity())),
            Self::Owner | Self::Location => text(a).cmp(&text(b)),
        }
    }
}

#[cfg(test)]
mod tests {
    use anteroom_controller_core::surface::Said;

    use super::*;

    fn surface(criticality: Option<Criticality>, owner: Option<&str>) -> Surface {
        Surface {
            criticality: criticality.map(|value| Said { value, segment: None }),
            owner: owner.map(|value| Said { value: value.to_owned(), segment: None }),
            ..Surface::default()
        }
    }

    #[test]
    fn all_that_is_asked_for_must_fit_and_unset_can_be_asked_for() {
        let pump = surface(Some(Criticality::LifeSupport), Some("Ward 3"));
        let none = Surface::default();
        let args = |criticality: &str, owner: Option<&str>| SurfaceArgs {
            criticality: criticality
                .split(',')
                .filter(|word| !word.is_empty())
                .map(|word| word.parse().unwrap())
                .collect(),
            owner: owner.map(str::to_owned),
            ..SurfaceArgs::default()
        };
        assert!(!args("", None).chooses() && args("", None).fits(&none));
        assert!(args("life-support", None).fits(&pump) && !args("life-support", None).fits(&none));
        assert!(args("unset,clinical", None).fits(&none) && !args("unset", None).fits(&pump));
        assert!(args("life-support", Some("ward")).fits(&pump));
        assert!(!args("life-support", Some("ward 4")).fits(&pump));
        assert!(!args("", Some("x")).fits(&none));
        assert!(args("life-support", None).fits_either([&none, &pump]));
        assert!("vital".parse::<Wanted<Criticality>>().is_err());
    }

    #[test]
    fn the_most_critical_come_first_and_who_says_nothing_last() {
        let all = [
            surface(None, Some("b")),
            surface(Some(Criticality::Support), None),
            surface(Some(Criticality::LifeSupport), Some("A")),
        ];
        let order = |by| {
            let mut rows: Vec<(usize, &Surface)> = all.iter().enumerate().collect();
            let args = SurfaceArgs { sort: by, ..SurfaceArgs::default() };
            args.sort(&mut rows, |row| [row.1, row.1]);
            rows.into_iter().map(|(place, _)| place).collect::<Vec<_>>()
        };
        assert_eq!(order(None), [0, 1, 2]);
        assert_eq!(order(Some(SortBy::Criticality)), [2, 1, 0]);
        assert_eq!(order(Some(SortBy::Owner)), [2, 0, 1]);
        let mut pairs = [[&all[0], &all[0]], [&all[0], &all[2]]];
        let args = SurfaceArgs { sort: Some(SortBy::Criticality), ..SurfaceArgs::default() };
        args.sort(&mut pairs, |ends| *ends);
        assert_eq!(pairs[0], [&all[0], &all[2]], "by the foremost of its ends");
    }
}
