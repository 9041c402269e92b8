//! How large each message is: one size, a range, or a weighted list. Pure.

use std::fmt;

use rand::Rng;

/// Largest message, in bytes: 16 MiB is beyond what any interactive protocol sends at once.
pub(crate) const MESSAGE_BYTES_MAX: u32 = 16 << 20;

/// Most lines of a distribution: finer steps than that are not seen in any figure.
const LINES_MAX: usize = 100_000;

/// A distribution of message sizes in bytes, each 1 to [`MESSAGE_BYTES_MAX`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Sizes {
    One(u32),
    /// Evenly from the first to the second, both included.
    Range(u32, u32),
    /// Sizes with the sum of weights up to and including each, in ascending order of the sums.
    Weighted(Vec<(u32, f64)>),
}

impl Sizes {
    /// Parses `LO-HI`.
    pub(crate) fn parse_range(text: &str) -> Result<Sizes, String> {
        let (low, high) = text.split_once('-').ok_or("not of the form LO-HI, as in 64-1400")?;
        let (low, high) = (size(low)?, size(high)?);
        if low > high {
            return Err(format!("{low} is more than {high}"));
        }
        Ok(Sizes::Range(low, high))
    }

    /// Parses lines of `BYTES WEIGHT`; empty lines and those that start with `#` are skipped.
    pub(crate) fn parse_weighted(text: &str) -> Result<Sizes, String> {
        let mut sizes = Vec::new();
        let mut sum = 0.0;
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (bytes, weight) = weighted(line).map_err(|why| format!("line {number}: {why}"))?;
            sum += weight;
            sizes.push((bytes, sum));
            if sizes.len() > LINES_MAX {
                return Err(format!("more than {LINES_MAX} lines"));
            }
        }
        if sum > 0.0 && sum.is_finite() {
            Ok(Sizes::Weighted(sizes))
        } else {
            Err("no weights".into())
        }
    }

    /// The size of the next message.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> u32 {
        match self {
            Sizes::One(bytes) => *bytes,
            Sizes::Range(low, high) => rng.random_range(*low..=*high),
            Sizes::Weighted(sizes) => {
                let total = sizes.last().map_or(0.0, |(_, sum)| *sum);
                let point = rng.random::<f64>() * total;
                let index = sizes.partition_point(|(_, sum)| *sum <= point);
                sizes[index.min(sizes.len() - 1)].0
            }
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::One(bytes) => write!(f, "{bytes} B"),
            Sizes::Range(low, high) => write!(f, "{low} to {high} B"),
            Sizes::Weighted(sizes) => write!(f, "{} weighted sizes", sizes.len()),
        }
    }
}

/// Parses one size in bytes.
pub(crate) fn size(text: &str) -> Result<u32, String> {
    let bytes: u32 = text.trim().parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
    let allowed = 1..=MESSAGE_BYTES_MAX;
    if allowed.contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("not in 1 to {MESSAGE_BYTES_MAX}"))
    }
}

fn weighted(line: &str) -> Result<(u32, f64), String> {
    let mut words = line.split_whitespace();
    let (Some(bytes), Some(weight), None) = (words.next(), words.next(), words.next()) else {
        return Err("not of the form BYTES WEIGHT".into());
    };
    let weight: f64 = weight.parse().map_err(|_| format!("{weight:?} is no weight"))?;
    if weight.is_finite() && weight >= 0.0 {
        Ok((size(bytes)?, weight))
    } else {
        Err(format!("{weight} is no weight"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn draw(sizes: &Sizes, count: usize) -> Vec<u32> {
        let mut rng = SmallRng::seed_from_u64(1);
        (0..count).map(|_| sizes.draw(&mut rng)).collect()
    }

    #[test]
    fn a_range_is_drawn_evenly_with_both_ends() {
        let drawn = draw(&Sizes::parse_range("10-14").unwrap(), 10_000);
        for bytes in 10..=14 {
            let count = drawn.iter().filter(|d| **d == bytes).count();
            assert!((1_800..2_200).contains(&count), "{bytes}: {count}");
        }
    }

    #[test]
    fn weights_are_shares_and_a_zero_weight_is_never_drawn() {
        let sizes = Sizes::parse_weighted("# keystrokes\n64 9\n\n 99 0\n1400 1\n").unwrap();
        let drawn = draw(&sizes, 10_000);
        let small = drawn.iter().filter(|d| **d == 64).count();
        assert!((8_800..9_200).contains(&small), "{small}");
        assert!(!drawn.contains(&99) && drawn.contains(&1400));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_line() {
        for range in ["5", "9-8", "0-8", "x-9", "1-99999999999"] {
            assert!(Sizes::parse_range(range).is_err(), "{range}");
        }
        for (text, fault) in [
            ("", "no weights"),
            ("64 0", "no weights"),
            ("64 1\n64", "line 2"),
            ("64 -1", "line 1"),
            ("64 NaN", "line 1"),
            ("0 1", "line 1"),
            ("64 1 1", "BYTES WEIGHT"),
        ] {
            let error = Sizes::parse_weighted(text).unwrap_err();
            assert!(error.contains(fault), "{text:?}: {error}");
        }
    }
}
