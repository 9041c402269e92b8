//! Links with names: what people have, each with the reason for its numbers.

use std::fmt;
use std::str::FromStr;

use crate::lab::wire::LinkSettings;

/// A named link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// What `--link` takes.
    pub name: &'static str,
    /// Towards the host: its download.
    pub down: &'static str,
    /// From the host: its upload.
    pub up: &'static str,
    /// Why these numbers.
    pub reason: &'static str,
}

/// All named links. Delays are one way; the round trip of the link is the sum of both.
pub const PRESETS: [Preset; 8] = [
    Preset {
        name: "perfect",
        down: "",
        up: "",
        reason: "nothing at all: what is measured is the software",
    },
    Preset {
        name: "lan",
        down: "delay=0.15ms,rate=1gbit,queue=500kB",
        up: "delay=0.15ms,rate=1gbit,queue=500kB",
        reason: "gigabit Ethernet over a few switches, 0.3 ms round trip, 4 ms of switch buffer",
    },
    Preset {
        name: "fibre-20ms",
        down: "delay=10ms,rate=500mbit,queue=2.5MB",
        up: "delay=10ms,rate=200mbit,queue=1MB",
        reason: "a home on fibre to a data centre of the same country, 40 ms of buffer each way",
    },
    Preset {
        name: "wifi",
        down: "delay=2ms,jitter=6ms,loss=0.1%,burst=3,rate=100mbit,queue=500kB",
        up: "delay=2ms,jitter=6ms,loss=0.2%,burst=3,rate=50mbit,queue=250kB",
        reason: "two walls from the access point: airtime contention is the jitter, retries leave \
                 few losses, in short bursts",
    },
    Preset {
        name: "4g",
        down: "delay=22ms,jitter=8ms,loss=0.1%,rate=40mbit,queue=1MB",
        up: "delay=25ms,jitter=12ms,loss=0.1%,rate=15mbit,queue=500kB",
        reason: "a good LTE cell: about 50 ms round trip, uplink grants every few ms make the \
                 jitter, 200 ms of buffer",
    },
    Preset {
        name: "weak-4g",
        down: "delay=40ms,jitter=30ms,loss=1%,burst=4,rate=4mbit,queue=250kB",
        up: "delay=50ms,jitter=40ms,loss=2%,burst=4,rate=1mbit,queue=125kB",
        reason: "the cell's edge or a moving train: retransmission by the radio is the jitter, fades \
                 lose several packets in a row, the buffer holds up to a second",
    },
    Preset {
        name: "satellite",
        down: "delay=280ms,jitter=10ms,loss=0.5%,burst=5,rate=25mbit,queue=1.5MB",
        up: "delay=280ms,jitter=20ms,loss=0.5%,burst=5,rate=3mbit,queue=200kB",
        reason: "geostationary: 36,000 km up and down is 240 ms one way, the rest is scheduling; rain \
                 fades come in bursts",
    },
    Preset {
        name: "transatlantic",
        down: "delay=40ms,jitter=1ms,loss=0.01%,rate=1gbit,queue=5MB",
        up: "delay=40ms,jitter=1ms,loss=0.01%,rate=1gbit,queue=5MB",
        reason: "London to New York: 5,600 km of glass is 28 ms one way, real routes have 35 to 40",
    },
];

/// Both directions of a host's link.
///
/// Text: a preset's name, [`LinkSettings`] items for both directions, or prefixed by `down.` or `up.`
/// for one, separated by commas: `4g,loss=2%,up.rate=1mbit`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Towards the host.
    pub down: LinkSettings,
    /// From the host.
    pub up: LinkSettings,
}

impl Link {
    /// Changes what the text names, all of it or, on an error, nothing. A preset's name replaces
    /// everything before it.
    ///
    /// # Errors
    /// The message names the item and what would be right.
    pub fn update(&mut self, text: &str) -> Result<(), String> {
        let mut link = *self;
        let (mut down, mut up) = (Vec::new(), Vec::new());
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if let Some(preset) = PRESETS.iter().find(|preset| preset.name == item) {
                link = Link::default();
                (down, up) = (vec![preset.down], vec![preset.up]);
            } else if let Some(item) = item.strip_prefix("down.") {
                down.push(item);
            } else if let Some(item) = item.strip_prefix("up.") {
                up.push(item);
            } else if item.contains('=') || item == "blackhole" {
                down.push(item);
                up.push(item);
            } else {
                return Err(format!("{item:?}: no such preset; there are {}", names()));
            }
        }
        link.down.update(&down.join(","))?;
        link.up.update(&up.join(","))?;
        *self = link;
        Ok(())
    }
}

impl FromStr for Link {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut link = Link::default();
        link.update(text)?;
        Ok(link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (down, up) = (self.down.items(), self.up.items());
        if down.is_empty() && up.is_empty() {
            return f.write_str("perfect");
        }
        if down == up {
            return f.write_str(&down.join(","));
        }
        let down = down.into_iter().map(|item| format!("down.{item}"));
        let up = up.into_iter().map(|item| format!("up.{item}"));
        f.write_str(&down.chain(up).collect::<Vec<_>>().join(","))
    }
}

/// The presets for `--help`: a line of name and settings, a line with the reason.
pub fn help() -> String {
    let mut text = String::new();
    for preset in &PRESETS {
        text.push_str(&format!("  {:<14} {}\n", preset.name, preset.reason));
        let settings = match (preset.down, preset.up) {
            ("", _) => continue,
            (down, up) if down == up => down.to_owned(),
            (down, up) => format!("down {down}; up {up}"),
        };
        text.push_str(&format!("  {:<14} {settings}\n", ""));
    }
    text
}

fn names() -> String {
    PRESETS.map(|preset| preset.name).join(", ")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn every_preset_is_a_link_with_a_reason_and_is_listed() {
        for preset in &PRESETS {
            let link: Link = preset.name.parse().unwrap();
            assert_eq!(link.down.to_string(), preset.down, "{}: canonical text", preset.name);
            assert_eq!(link.up.to_string(), preset.up, "{}: canonical text", preset.name);
            assert_eq!(link.to_string().parse(), Ok(link));
            assert!(preset.reason.len() > 20 && help().contains(preset.reason));
        }
    }

    #[test]
    fn a_preset_can_be_changed_for_both_directions_or_one() {
        let link: Link = "4g,loss=2%,up.rate=1mbit".parse().unwrap();
        assert_eq!(link.down.to_string(), "delay=22ms,jitter=8ms,loss=2%,rate=40mbit,queue=1MB");
        assert_eq!(link.up.to_string(), "delay=25ms,jitter=12ms,loss=2%,rate=1mbit,queue=500kB");
        assert_eq!(link.to_string().parse(), Ok(link));
    }

    #[test]
    fn a_partial_update_leaves_the_rest_and_a_preset_replaces_everything() {
        let mut link: Link = "satellite".parse().unwrap();
        link.update("down.delay=1ms").unwrap();
        assert_eq!(link.down.delay, Duration::from_millis(1));
        assert_eq!(link.up, "satellite".parse::<Link>().unwrap().up);
        link.update("down.blackhole,delay=3ms").unwrap();
        assert!(link.down.blackhole && !link.up.blackhole);
        link.update("perfect").unwrap();
        assert_eq!(link, Link::default());
    }

    #[test]
    fn a_wrong_link_is_refused_with_what_there_is() {
        let error = "5g".parse::<Link>().unwrap_err();
        assert!(error.contains("no such preset; there are perfect, lan"), "{error}");
        let error = "4g,up.delay=2".parse::<Link>().unwrap_err();
        assert!(error.contains("as in 20ms"), "{error}");
        assert!("".parse::<Link>().unwrap().down.is_perfect());
    }
}
