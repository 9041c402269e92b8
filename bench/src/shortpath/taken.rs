//! What was taken of one case: samples and failures of each who was measured.
use anyhow::Result;
use indicatif::ProgressBar;

use super::goals::Sample;
use crate::report::Failure;

/// Samples and failures of one who was measured.
#[derive(Clone, Debug)]
pub(crate) struct Taken {
    /// Of a peer, or of a variant.
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
    pub(crate) failed: usize,
}

impl Taken {
    /// Nothing yet.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, samples: Vec::new(), failed: 0 }
    }

    /// Takes one more, and says so; the first that fails is told in `failures`.
    pub(crate) fn take(
        &mut self,
        during: [&str; 2],
        progress: &ProgressBar,
        failures: &mut Vec<Failure>,
        measure: impl FnOnce() -> Result<Sample>,
    ) {
        let [experiment, case] = during;
        let words = format!("{experiment}: {case}, {}", self.name);
        progress.set_message(words.clone());
        if progress.is_hidden() {
            eprintln!("measuring {words}");
        }
        match measure() {
            Ok(sample) => self.samples.push(sample),
            Err(error) => {
                self.failed += 1;
                if self.failed == 1 {
                    let (peer, reason) = (self.name.to_owned(), format!("{error:#}"));
                    failures.push(Failure { peer, during: words, reason });
                }
            }
        }
        progress.inc(1);
    }
}
